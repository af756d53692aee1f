"""What tasks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from research.errors import ConfigError
from research.sampling.hooks import Hook
from research.sampling.noise import INITIAL
from research.sampling.plugs import Condition, Model
from research.sampling.run import Run


class Conditions(Mapping[str, Condition]):
    """Conditions by name, each made when it is first asked for: nothing is encoded that no guidance uses."""

    def __init__(self, makers: Mapping[str, Callable[[], Condition]]):
        self._makers = dict(makers)
        self._made: dict[str, Condition] = {}

    def __getitem__(self, name: str) -> Condition:
        if name not in self._made:
            if name not in self._makers:
                raise ConfigError(
                    f"guidance: asks for a condition {name!r}; this task has {', '.join(self._makers)}."
                )
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def get(self, name: str, default: Any = None) -> Any:
        """The condition of a name, made now, or ``default`` where the task has none."""
        return self[name] if name in self._makers else default

    def made(self, name: str) -> bool:
        """Whether somebody has asked for the condition."""
        return name in self._made

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class BaseTask:
    """Starts from noise at full strength, and decodes what the loop ends with."""

    name = "task"
    family = ""  # the model family it is for
    strength = 1.0
    prompts: Sequence[str] | str | None = None
    height: int | None = None
    width: int | None = None

    def check(self, model: Model, n_images: int) -> None:
        if getattr(model, "family", self.family) != self.family:
            raise ConfigError(
                f"task: {self.name} is for models of the family {self.family}; {model.name} is {model.family}."  # type: ignore[attr-defined]
            )
        model.latent_shape(self.height, self.width)

    def start(self, run: Run) -> Tensor:
        shape = run.model.latent_shape(self.height, self.width)
        noise = run.noise.draw(INITIAL, shape, run.model.dtype)
        return run.solver.scale_noise(noise)

    def hooks(self, run: Run) -> Sequence[Hook]:
        return ()

    def finish(self, run: Run, latents: Tensor) -> list[Any]:
        return run.model.decode(run, latents)

"""The base class of tasks, `BaseTask`, and their conditions, made when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from research.arguments import Recorded
from research.errors import ConfigError
from research.sampling.interfaces import Batch, Condition, Hook, Model, ModelFacts, Solver, not_inherited
from research.sampling.noise import INITIAL
from research.sampling.timeline import Timeline

# what a latent UNet's input channels are, and the task for it
_ROLES = {
    "text": "the latents alone",
    "inpaint": "a mask and the masked latents as well (9 channels in Stable Diffusion)",
    "depth": "a depth map as well (5 channels in Stable Diffusion)",
}
_TASKS = {"text": "text_to_image", "inpaint": "inpaint", "depth": "depth_to_image"}


class Conditions(Mapping[str, Condition]):
    """Conditions by name, each made when it is first asked for: nothing is encoded that no guidance uses."""

    def __init__(self, makers: Mapping[str, Callable[[], Condition]]):
        self._makers = dict(makers)
        self._made: dict[str, Condition] = {}

    def __getitem__(self, name: str) -> Condition:
        if name not in self._made:
            if name not in self._makers:
                raise ConfigError(f"guidance: asks for a condition {name!r}; this task has {', '.join(self._makers)}.")
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


class BaseTask(Recorded):
    """Starts from noise at full strength, and decodes what the loop ends with."""

    name = "task"
    roles: tuple[str, ...] = ("text",)  # what a latent UNet may take besides the latents, see `_ROLES`
    strength = 1.0
    varies = True  # whether another start noise makes another image of the same seed
    requires: frozenset[str] = frozenset()
    prompts: Sequence[str] | str | None = None
    negative_prompt: Sequence[str] | str | None = None
    height: int | None = None
    width: int | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        not_inherited(cls, BaseTask, "vectorises")

    def vectorises(self) -> bool:
        """Whether images of several jobs may share a batch: an image depends on its row alone, and nothing is kept but in the
        run. A subclass does not inherit it."""
        return False

    def check(self, model: ModelFacts, n_images: int) -> None:
        role = model.role
        if model.family is not None and role not in self.roles:
            raise ConfigError(
                f"task: {self.name} needs a UNet that takes {_ROLES[self.roles[0]]}; that of {model.name} takes "
                f"{_ROLES[role]}: use task {_TASKS[role]}."
            )
        model.latent_shape(self.height, self.width)

    def prepare(self, model: Model, n_images: int, *, parity: bool) -> None:
        return None

    def claims(self, model: ModelFacts) -> frozenset[str]:
        return frozenset()

    def condition(self, run: Batch, texts: str | Sequence[str], *, negative: bool = False) -> Condition:
        """A condition of other sentences; see `research.sampling.interfaces.Task`.

        Raises:
            ConfigError: the task has no sentences.
        """
        raise ConfigError(f"task: {self.name} is not conditioned on sentences; found {texts!r}.")

    def seeds(self, given: Sequence[int] | None) -> Sequence[int] | None:
        return given

    def solver(self, solver: Solver) -> Solver:
        return solver

    def timeline(self, solver: Solver, steps: int, device: torch.device) -> Timeline:
        return solver.timeline(steps, strength=self.strength, device=device)

    def latent_shape(self, model: ModelFacts) -> tuple[int, int, int]:
        """Channels, height and width of the latents, once `prepare` has been called."""
        return model.latent_shape(self.height, self.width)

    def picture_size(self, model: ModelFacts) -> tuple[int, int]:
        """Height and width of the pictures in pixels, once `prepare` has been called."""
        _, height, width = self.latent_shape(model)
        return height * model.vae_factor, width * model.vae_factor

    def start(self, run: Batch) -> Tensor:
        shape = self.latent_shape(run.model)
        run.start_noise = run.noise.draw(INITIAL, shape, run.model.noise_dtype)
        return run.solver.scale_noise(run.start_noise)

    def hooks(self, run: Batch) -> Sequence[Hook]:
        return ()

    def finish(self, run: Batch, latents: Tensor) -> list[Any]:
        return run.model.decode(run, latents)

    def pictures(self, images: Sequence[Any]) -> Mapping[str, Any]:
        return {}

"""How far a scheduler strays on Gaussian data, where the right answer is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from research.errors import ConfigError
from research.sampling import LoopSampler
from research.sampling.interfaces import Batch, Condition, Hook, Solver
from research.sampling.noise import INITIAL, NoiseSource, stream_seed
from research.sampling.timeline import Timeline
from research.testing.gaussian import GaussianModel


class GaussianTask:
    """Starts from data noised to the first level that is walked, and keeps what is needed to judge the end.

    Args:
        strength: the part of the steps that is walked, from 0 to 1.
        pure_noise: start from noise alone, as text-to-image does, and not from noised data.
    """

    name = "gaussian"
    prompts: Sequence[str] | str | None = None
    negative_prompt: Sequence[str] | str | None = None
    requires: frozenset[str] = frozenset()

    def __init__(self, strength: float = 1.0, pure_noise: bool = False):
        self.strength, self.pure_noise = strength, pure_noise
        self.starts: list[Tensor] = []
        self.ends: list[Tensor] = []
        self.timeline_walked: Timeline = Timeline((), 0)
        self.end_level = (1.0, 0.0)

    def seeds(self, given: Sequence[int] | None) -> Sequence[int] | None:
        return given

    def check(self, model: Any, n_images: int) -> None:
        pass

    def prepare(self, model: Any, n_images: int, *, parity: bool) -> None:
        pass

    def solver(self, solver: Solver) -> Solver:
        return solver

    def timeline(self, solver: Solver, steps: int, device: torch.device) -> Timeline:
        self.timeline_walked = solver.timeline(steps, strength=self.strength, device=device)
        self.end_level = solver.end_level
        return self.timeline_walked

    def conditions(self, run: Batch) -> Mapping[str, Condition]:
        return {"cond": Condition()}

    def start(self, run: Batch) -> Tensor:
        model: Any = run.model
        # of its own: with parity the run's streams are all one, and the steps' noise must not be the start's once more
        source = NoiseSource([stream_seed(seed, self.name) for seed in run.seeds])
        noise = source.draw(INITIAL, model.shape, model.dtype)
        if self.pure_noise:
            x = run.solver.scale_noise(noise)
        else:
            clean = model.sample_clean(source.draw("clean", model.shape, torch.float64)).to(model.dtype)
            x = run.solver.add_noise(clean, noise, run.timeline[0])
        self.starts.append(x)
        return x

    def claims(self, model: Any) -> frozenset[str]:
        return frozenset()

    def latent_shape(self, model: Any) -> tuple[int, int, int]:
        return model.latent_shape(None, None)

    def condition(self, run: Batch, texts: str | Sequence[str], *, negative: bool = False) -> Condition:
        raise ConfigError(f"task: {self.name} is not conditioned on sentences; found {texts!r}.")

    def hooks(self, run: Batch) -> Sequence[Hook]:
        return ()

    def finish(self, run: Batch, latents: Tensor) -> list[Any]:
        self.ends.append(latents)
        return run.model.decode(run, latents)

    def pictures(self, images: Sequence[Any]) -> Mapping[str, Any]:
        return {}


@dataclass(frozen=True, slots=True)
class GaussianError:
    """What a run got wrong.

    Attributes:
        path: root mean square distance from where the probability-flow ODE ends, in units of the data's spread (of 1 for data
            without spread); of meaning for deterministic schedulers.
        std: (spread found / right spread) - 1, the largest in size over the elements of equal spread. With ``n`` numbers to each
            it has a random part of about ``1 / sqrt(2 n)``. 0 for data without spread.
        nfe: model evaluations an image.
    """

    path: float
    std: float
    nfe: int


def measure(
    model: GaussianModel,
    scheduler: Any,
    steps: int,
    *,
    strength: float = 1.0,
    options: Mapping[str, Any] | None = None,
    parity: bool = False,
    seeds: Sequence[int] = range(4),
    pure_noise: bool = False,
) -> GaussianError:
    """Sample with a scheduler and compare the latents with the known answer at the level where the scheduler ends.

    Raises:
        UserError: as `LoopSampler.sample`.
    """
    task = GaussianTask(strength, pure_noise)
    result = LoopSampler(model, scheduler, options, parity=parity).sample(
        task, seeds=list(seeds), steps=steps, progress=False
    )
    first = task.timeline_walked[0]
    start, end = torch.cat(task.starts), torch.cat(task.ends).double()
    right = model.transport(start, (first.signal, first.noise), task.end_level)
    unit = float(model.std.square().mean().sqrt()) or 1.0
    return GaussianError(
        path=float((end - right).square().mean().sqrt()) / unit,
        std=_std_error(end - task.end_level[0] * model.mean, model.spread(*task.end_level)),
        nfe=result.nfe,
    )


def _std_error(centred: Tensor, spread: Tensor) -> float:
    levels = [level for level in spread.unique() if level > 0]
    return max((float(centred[:, spread == level].std() / level) - 1.0 for level in levels), key=abs, default=0.0)

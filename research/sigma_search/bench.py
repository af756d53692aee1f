"""What a grid of noise levels is worth: the error of a solver on it against a converged run from the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from research.errors import ConfigError
from research.hooks import Record
from research.jobs.scoring import sampler_and_task
from research.sampling import LoopSampler
from research.sigmas import Karras
from research.solvers import Levels, SchedulerSpec, TrainedLevels

REFERENCE = "dpmpp_2m"  # the solver of converged runs: of second order, deterministic, on every kind of model
_BATCH = 16


@dataclass(frozen=True)
class Trajectory:
    """A converged run, level by level.

    Attributes:
        levels: its grid, the clean end included.
        latents: at each level but the end, each [N, C, h, w].
        data: the data predictions there.
        end: the latents at the end.
    """

    levels: Levels
    latents: Sequence[Tensor]
    data: Sequence[Tensor]
    end: Tensor


@dataclass
class Bench:
    """Samples one composed job on any grid.

    Args:
        config: of the job, validated; its seeds and metrics do not count.
        fine: steps of converged runs.
        compared: whether its solver is to be compared with converged runs.
        ends: of converged runs by their seeds; benches of one model, task and guidance may share them.

    Raises:
        ConfigError: the scheduler adds noise of its own and is to be compared, though no run is the converged one; a task
            without a fixed start.
    """

    config: Mapping[str, Any]
    fine: int = 100
    ends: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    compared: bool = True

    def __post_init__(self) -> None:
        self._own, self.task = sampler_and_task(self.config)
        asked = self.config["scheduler"]
        self.scheduler = SchedulerSpec(asked["name"], asked["class_name"], asked["options"])
        solver = self._sampler(self.scheduler, None)._new_solver()
        if self.compared and "deterministic" not in solver.supports:
            raise ConfigError(
                f"scheduler: {asked['name']} adds noise of its own, so that no run has a converged one to be compared with; "
                "accepted are deterministic solvers (dpmpp_2m, euler, unipc, ...)."
            )
        self.steps: int = self.config["steps"]

    @property
    def weights(self) -> str:
        """The hash of the model's weights."""
        return self._own.model.weights_sha256

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._own.model.device

    @property
    def trained(self) -> TrainedLevels:
        """The noise levels that the model was trained on."""
        factory: Any = self._own.model.solvers(REFERENCE, None, parity=False)
        found: TrainedLevels = factory.trained
        return found

    def end(self, seeds: Sequence[int], sigmas: Any = None) -> Tensor:
        """The final latents of the job's solver on a grid, [N, C, h, w]; None is the solver's own grid."""
        return self._sample(self.scheduler, sigmas, seeds, self.steps)

    def pictures(self, seeds: Sequence[int], sigmas: Any = None) -> list[Any]:
        """The pictures of the job's solver on a grid, one a seed."""
        sampler = self._sampler(self.scheduler, sigmas)
        return [
            picture
            for some in _batches(seeds)
            for picture in sampler.sample(self.task, seeds=some, steps=self.steps, progress=False).images
        ]

    def converged(self, seeds: Sequence[int]) -> Tensor:
        """The final latents of a converged run, [N, C, h, w]."""
        key = tuple(seeds)
        if key not in self.ends:
            self.ends[key] = self._sample(REFERENCE, Karras(), seeds, self.fine)
        return self.ends[key]

    def errors(self, seeds: Sequence[int], sigmas: Any = None) -> Tensor:
        """Of each image, the root mean square distance from the converged run, over the spread of that; [N], 0 is exact."""
        right = self.converged(seeds).double()
        apart = (self.end(seeds, sigmas).double() - right).flatten(1)
        return apart.square().mean(dim=1).sqrt() / right.std()

    def trajectory(self, seeds: Sequence[int]) -> Trajectory:
        """A converged run, with all that it passes through."""
        hook = Record(tensors=["x", "x0"])
        parts = []
        for some in _batches(seeds):
            result = self._sampler(REFERENCE, Karras(), [hook]).sample(
                self.task, seeds=some, steps=self.fine, progress=False
            )
            kept = result.trace["tensors"]
            parts.append(
                [[kept[f"{name}/step_{i:04d}"] for i in range(self.fine)] for name in ("x", "x0")] + [[result.latents]]
            )
        latents, data = (
            [torch.cat([part[which][i] for part in parts]).double() for i in range(self.fine)] for which in (0, 1)
        )
        end = torch.cat([part[2][0] for part in parts]).double()
        return Trajectory(Karras().levels(self.trained, self.fine), latents, data, end)

    def _sample(self, scheduler: Any, sigmas: Any, seeds: Sequence[int], steps: int) -> Tensor:
        sampler = self._sampler(scheduler, sigmas)
        return torch.cat(
            [sampler.sample(self.task, seeds=some, steps=steps, progress=False).latents for some in _batches(seeds)]
        )

    def _sampler(self, scheduler: Any, sigmas: Any, more: Sequence[Any] = ()) -> LoopSampler:
        own = self._own
        return LoopSampler(own.model, scheduler, guidance=own.guidance, hooks=[*own.hooks, *more], sigmas=sigmas)


def _batches(seeds: Sequence[int]) -> list[list[int]]:
    return (
        [list(seeds)] if len(seeds) <= _BATCH else [list(seeds[i : i + _BATCH]) for i in range(0, len(seeds), _BATCH)]
    )

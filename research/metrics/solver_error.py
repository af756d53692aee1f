"""Solver error: how far a trajectory ends from where the same model, followed without error, takes the same noise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.caches import MIB, Cache
from research.checks import check_whole_number
from research.errors import ConfigError
from research.files import stamp
from research.metrics.base import JobMetric, MetricResult, check_count, comparable, library_versions, mean_over_images
from research.metrics.job import ScoredJob, required_job

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

DEFINITION = (
    "root mean square difference of the final latents to those of a converged reference with the same seeds, "
    "mean over images"
)
_KEY = "metrics.solver_error"
# classes whose steps draw noise whatever their options
_STOCHASTIC = frozenset(
    {
        "DDPMScheduler",
        "EulerAncestralDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "DPMSolverSDEScheduler",
        "LCMScheduler",
    }
)
_AS_NOISY = 0.98  # of the job's first noise level: what a reference has to begin at
_references = Cache("solver references", 256 * MIB)


class SolverError(JobMetric):
    """``solver_error``: the distance of final latents to a converged reference: same model, seeds, prompts, guidance.

    Solvers are compared without the noise of FID: the number is exact for each image. It has the unit of the latents; 0 is
    perfect, and the deviation of the latents themselves stands beside it as ``latent_std`` in the record. The job is sampled
    once more for its latents, and once with `times` as many steps; jobs with the same reference share it within a process. Use
    `research.metrics.fit_order` for the convergence order.

    Args:
        times: steps of the reference, in the job's own; at most ``max_steps`` in all.
        scheduler: of the reference: the job's own by default, so that the error is that of too few steps alone; one for all
            jobs (``heun``, ``dpmpp_2m``) compares solvers with one another.
        steps: of the reference, in place of ``times``: one for all jobs.
        max_steps: what the schedulers take; those of discrete models take 1000.
    """

    name = "solver_error"

    def __init__(
        self, times: int = 10, scheduler: str | None = None, steps: int | None = None, max_steps: int = 1000
    ) -> None:
        self.times, self.scheduler, self.steps, self.max_steps = times, scheduler, steps, max_steps

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for a bad setting, or no images."""
        check_whole_number(f"{_KEY}.times", self.times, least=2)
        check_whole_number(f"{_KEY}.max_steps", self.max_steps, least=1)
        if self.steps is not None:
            check_whole_number(f"{_KEY}.steps", self.steps, least=1)
        if self.scheduler is not None and (not isinstance(self.scheduler, str) or not self.scheduler):
            raise ConfigError(f"{_KEY}.scheduler: found {self.scheduler!r}; accepted is a scheduler's name, or null.")
        check_count(_KEY, n_images)

    def check_job(self, config: Mapping[str, Any]) -> None:
        """Raises ConfigError for a scheduler that draws noise at its steps, or a reference that is no finer than the job."""
        scheduler, steps = config["scheduler"], int(config["steps"])
        options = scheduler.get("options") or {}
        name = scheduler.get("name") or scheduler.get("class_name")
        noisy = scheduler.get("class_name") in _STOCHASTIC or "sde" in str(options.get("algorithm_type", ""))
        if noisy or any(float(options.get(key) or 0) > 0 for key in ("eta", "s_churn")):
            raise ConfigError(
                f"{_KEY}: scheduler {name} draws noise at its steps, so that more of them lead elsewhere; accepted are "
                "deterministic ones (ddim, dpmpp_2m, heun, ...)."
            )
        if self.reference_steps(steps) < 2 * steps:
            raise ConfigError(
                f"{_KEY}: found a reference of {self.reference_steps(steps)} steps for a job of {steps}; accepted is at least "
                f"twice as many (metrics.solver_error.steps, or at most {self.max_steps // 2} steps in the job)."
            )

    def reference_steps(self, steps: int) -> int:
        """The steps of the reference of a job with so many."""
        return min(self.steps if self.steps is not None else self.times * steps, self.max_steps)

    def compute(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str] = (),
        *,
        device: str | torch.device = "cpu",
        job: ScoredJob | None = None,
    ) -> MetricResult:
        """Samples the job's latents and the reference's, and compares them image by image.

        Raises:
            ConfigError: see `check_job`; or the job cannot be sampled, where only its images are there.
        """
        self.check(n_images=len(images))
        job = required_job(_KEY, job)
        self.check_job(job.config)
        if job.sample is None:
            raise ConfigError(f"{_KEY}: needs to sample the job again, and only its images are there.")
        sample, steps = job.sample, int(job.config["steps"])
        finer = self.reference_steps(steps)
        own = sample(steps=steps)
        key = _identity(job, self.scheduler), self.scheduler, finer, str(device), *_stamps(job.config)
        reference: Tensor = _references.get(
            key, lambda: sample(steps=finer, scheduler=self.scheduler), lambda made: made.nbytes
        )
        if own.shape != reference.shape or len(own) != len(images):
            raise ConfigError(
                f"{_KEY}: found latents {list(own.shape)} and {list(reference.shape)} for {len(images)} images; accepted are "
                "tasks whose images have latents one each."
            )
        errors = (own.double() - reference.double()).flatten(1).square().mean(1).sqrt().tolist()
        name = self.scheduler or job.config["scheduler"].get("name") or job.config["scheduler"].get("class_name")
        spread = reference.double().flatten(1).std(1)
        settings = {"reference_scheduler": name, "reference_steps": finer}
        warnings = []
        if finer < self.times * steps and self.steps is None:
            warnings.append(
                f"{self.name}: the reference has {finer} steps, {finer / steps:.1f} times the job's: its own error counts"
            )
        warnings += self._cut_short(job, steps, finer)
        info = {
            "definition": DEFINITION,
            **settings,
            "latent_std": float(f"{float(spread.mean()):.6g}"),
            "comparable": comparable(DEFINITION, settings, _identity(job, name)),
            "versions": library_versions("torch", "diffusers"),
            "warnings": warnings,
        }
        return mean_over_images(self.name, errors, info)

    def _cut_short(self, job: ScoredJob, steps: int, finer: int) -> list[str]:
        """With leading timesteps some schedulers divide the schedule by steps + 1: just above a divisor they cover half of it."""
        if job.start is None:
            return []
        own, reference = job.start(steps, None), job.start(finer, self.scheduler)
        if reference >= _AS_NOISY * own:
            return []
        return [
            f"{self.name}: the reference of {finer} steps begins at noise level {reference:.3g}, below the job's own {own:.3g}, "
            f"and leads elsewhere: the number says nothing; choose metrics.solver_error.steps, {finer - 1} for example"
        ]


def _stamps(config: Mapping[str, Any]) -> Iterator[Hashable]:
    """Of the files and folders that a config names, prompts aside: a model or a picture may be written anew in a process."""
    for key, value in config.items():
        values = value if isinstance(value, list | tuple) else [value]
        for inner in values if key not in ("prompts", "output_dir", "sweep_name") else ():
            if isinstance(inner, Mapping):
                yield from _stamps(inner)
            elif isinstance(inner, str) and 0 < len(inner) < 250 and (path := Path(inner).expanduser()).exists():
                yield key, inner, stamp(path)


def _identity(job: ScoredJob, scheduler: str | None) -> str:
    """What decides where trajectories lead, but for the steps, and for the scheduler where another one is named."""
    left_out = {
        "steps",
        "metrics",
        "tracker",
        "output_dir",
        "sweep_name",
        "on_failure",
        "resume",
        "retry",
        "batch_size",
    }
    config = {key: value for key, value in job.config.items() if key not in left_out}
    config["runtime"] = {"parity": (config.get("runtime") or {}).get("parity", False)}
    if scheduler is not None:
        config.pop("scheduler", None)
    text = json.dumps([config, list(job.seeds)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

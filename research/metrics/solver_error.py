"""Solver error: how far a trajectory ends from where the same model, followed without error, takes the same noise."""

from __future__ import annotations

import hashlib
import json
import math
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
GRID_DEFINITION = "the same, to where the reference's path ends with one step from the job's own last noise level"
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
_AS_NOISY = 0.02  # share of the job's first noise level by which a reference may begin elsewhere
_references = Cache("solver references", 256 * MIB)


class SolverError(JobMetric):
    """``solver_error``: the distance of final latents to a converged reference: same model, seeds, prompts, guidance.

    Solvers are compared without the noise of FID: the number is exact for each image. It has the unit of the latents; 0 is
    perfect, and the deviation of the latents themselves stands beside it as ``latent_std`` in the record. With z the job's final
    latents, of D numbers, and z* those of the reference, it is the mean over images of ``|z - z*| / sqrt(D)``.

    Two numbers. ``solver_error`` is the distance to the end of the exact path. A job's last evaluation is at a noise level s
    above 0, from which one step leads to clean latents; no solver can do better there than that step does. ``solver_error_grid``
    is the distance to where the exact path would end so, ``|z - x0(x*_s, s)| / sqrt(D)`` with the reference's latents x*_s at
    level s and the clean latents x0 that the model predicts from them: what the steps on this grid cost, without what it never
    reaches.
    (Between two levels of the reference x0 is taken linear in log s.) It is left out where the last step ends above 0.

    The job is sampled once more for its latents, and once for the reference, whose number of steps is the nearest to `times` as
    many that begin at the job's own first noise level (with leading timesteps most counts begin elsewhere); jobs with the same
    reference share it within a process. Where no count begins within 2 % of it, or `steps` says one that begins below, there is
    no number, and a warning says why. Use `research.metrics.fit_order` for the convergence order.

    Args:
        times: about how many times the job's own steps the reference has; at most ``max_steps`` in all.
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
        if "_target_" in (config.get("sampler") or {}):
            raise ConfigError(
                "metrics.solver_error: follows each image's one trajectory, and sampler "
                f"{config['sampler'].get('name')} makes several; accepted is sampler=loop."
            )
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

        Returns:
            ``solver_error`` with its standard error, and ``solver_error_grid``; no number where a reference leads elsewhere.

        Raises:
            ConfigError: see `check_job`; or the job cannot be sampled, where only its images are there.
        """
        import torch

        self.check(n_images=len(images))
        job = required_job(_KEY, job)
        self.check_job(job.config)
        if job.sample is None:
            raise ConfigError(f"{_KEY}: needs to sample the job again, and only its images are there.")
        sample, steps = job.sample, int(job.config["steps"])
        finer, why = self._reference(job, steps)
        if why:
            return MetricResult({}, {"definition": DEFINITION, "n_images": len(images), "warnings": [why]})
        own = sample(steps=steps)
        at, share = self._around_the_last(job, steps, finer)
        key = _identity(job, self.scheduler), self.scheduler, finer, at, str(device), *_stamps(job.config)

        def made() -> tuple[Tensor, list[Tensor]]:
            if job.path is None:
                return sample(steps=finer, scheduler=self.scheduler), []
            return job.path(finer, self.scheduler, at)

        reference, clean = _references.get(key, made, lambda found: found[0].nbytes * (1 + len(found[1])))
        if own.shape != reference.shape or len(own) != len(images):
            raise ConfigError(
                f"{_KEY}: found latents {list(own.shape)} and {list(reference.shape)} for {len(images)} images; accepted are "
                "tasks whose images have latents one each."
            )
        errors = _distances(own, reference)
        name = self.scheduler or job.config["scheduler"].get("name") or job.config["scheduler"].get("class_name")
        spread = reference.double().flatten(1).std(1)
        settings = {"reference_scheduler": name, "reference_steps": finer}
        warnings = []
        if finer < self.times * steps and self.steps is None:
            warnings.append(
                f"{self.name}: the reference has {finer} steps, {finer / steps:.1f} times the job's: its own error counts"
            )
        warnings += self._begins_above(job, steps, finer)
        info = {
            "definition": DEFINITION,
            **settings,
            "latent_std": float(f"{float(spread.mean()):.6g}"),
            "comparable": comparable(DEFINITION, settings, _identity(job, name)),
            "versions": library_versions("torch", "diffusers"),
            "warnings": warnings,
        }
        result = mean_over_images(self.name, errors, info)
        if not clean:
            return result
        ends = clean[0] if len(clean) == 1 else torch.lerp(clean[0].double(), clean[1].double(), share)
        on_grid = _distances(own, ends)
        also, grid = mean_over_images(f"{self.name}_grid", on_grid, {}), f"{self.name}_grid"
        result.info["grid_definition"] = GRID_DEFINITION
        result.info["per_image_of"] = {grid: also.info["per_image"]}
        return MetricResult({**result.values, **also.values}, result.info)

    def _reference(self, job: ScoredJob, steps: int) -> tuple[int, str]:
        """The reference's steps, and why its number would say nothing, if so."""
        finer = self.reference_steps(steps)
        if job.grid is None:
            return finer, ""
        own = job.grid(steps, None).first
        if self.steps is None and job.finer is not None:
            found = job.finer(steps, self.scheduler, finer, 2 * steps, self.max_steps)
            if found is not None:
                return found, ""
            return finer, (
                f"{self.name}: no number, as no reference of {2 * steps} to {self.max_steps} steps begins at the job's own noise "
                f"level, {own:.3g}; metrics.solver_error.steps or another number of steps may do"
            )
        # with leading timesteps some schedulers divide the schedule by steps + 1: just above a divisor they cover half of it
        begin = job.grid(finer, self.scheduler).first
        if begin >= (1 - _AS_NOISY) * own:
            return finer, ""
        return finer, (
            f"{self.name}: no number, as the reference of {finer} steps begins at noise level {begin:.3g}, below the job's own "
            f"{own:.3g}, and leads elsewhere; leave metrics.solver_error.steps out, or choose {finer - 1}, for example"
        )

    def _begins_above(self, job: ScoredJob, steps: int, finer: int) -> list[str]:
        if job.grid is None:
            return []
        own, begin = job.grid(steps, None).first, job.grid(finer, self.scheduler).first
        if begin <= (1 + _AS_NOISY) * own:
            return []
        return [
            f"{self.name}: the reference begins at noise level {begin:.3g}, above the job's own {own:.3g}: what lies "
            "between counts"
        ]

    def _around_the_last(self, job: ScoredJob, steps: int, finer: int) -> tuple[tuple[int, ...], float]:
        """The reference's steps that begin at the job's last noise level, or above and below it, and the share of the latter."""
        if job.grid is None or job.path is None:
            return (), 0.0
        own, reference = job.grid(steps, None), job.grid(finer, self.scheduler)
        last = own.last
        if own.end != 0 or not 0 < last < math.inf:
            return (), 0.0
        near = min(reference.levels, key=lambda step: abs(reference.levels[step] - last))
        if abs(reference.levels[near] / last - 1) < 1e-3:
            return (near,), 0.0
        above = [step for step, level in reference.levels.items() if last < level < math.inf]
        below = [step for step, level in reference.levels.items() if 0 < level < last]
        if not above or not below:
            return (), 0.0
        ends = above[-1], below[0]
        high, low = (math.log(reference.levels[step]) for step in ends)
        return ends, (high - math.log(last)) / (high - low)


def _distances(a: Tensor, b: Tensor) -> list[float]:
    """Root mean square differences, image by image."""
    found: list[float] = (a.double() - b.double()).flatten(1).square().mean(1).sqrt().tolist()
    return found


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
    if "_target_" not in (config.get("sigmas") or {}):
        config.pop("sigmas", None)  # the model's own, as before there was the key
    config.pop("sampler", None)  # that of the loop: others are refused
    config["runtime"] = {"parity": (config.get("runtime") or {}).get("parity", False)}
    if scheduler is not None:
        config.pop("scheduler", None)
    text = json.dumps([config, list(job.seeds)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

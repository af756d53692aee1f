"""The denoising loop: the only place in the project that walks over timesteps and calls a model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from research.checks import check_whole_number
from research.errors import ConfigError, SamplingError
from research.sampling.fit import (
    check_claims,
    check_negative_prompt,
    check_offers,
    check_plugs,
    checked_guidance,
    checked_hooks,
    checked_model,
    checked_seeds,
    checked_task,
)
from research.sampling.hook_points import HookSet, check_guided, guarded, in_order, plug_name
from research.sampling.interfaces import (
    Batch,
    Branch,
    Denoiser,
    Guidance,
    Guided,
    Hook,
    Model,
    Run,
    Solver,
    StepState,
    Task,
)
from research.sampling.noise import NoiseSource
from research.sampling.prediction import Prediction
from research.sampling.result import Progress, SampleResult, gather, result_of
from research.sampling.timeline import Stage


class LoopSampler:
    """A sampler around one loop, put together from plugs.

    Args:
        model: from `research.load_model`.
        scheduler: "model" for the checkpoint's own, a short name ("ddim"), a diffusers class name ("DDIMScheduler"), a diffusers
            scheduler object, a `LinearSolver` or a `Solver`. It is built fresh for each run from a frozen config; an object is
            read and never changed.
        scheduler_options: arguments of the scheduler's class or of its ``step``.
        guidance: how predictions are combined; none by default, which costs one evaluation a stage.
        hooks: plugs for the named points of the loop.
        sigmas: the noise levels to visit: an object with ``levels(trained, steps)`` (`research.sigmas`), or None for those that
            the scheduler has on this model.
        parity: equal the diffusers pipeline of this model and task bit for bit (CPU, fp32), its known faults included.

    Raises:
        ConfigError: the scheduler or an option is unknown, or the guidance needs what model and scheduler do not offer.
    """

    def __init__(
        self,
        model: Model,
        scheduler: Any = "model",
        scheduler_options: Mapping[str, Any] | None = None,
        guidance: Guidance | None = None,
        hooks: Sequence[Hook] | Hook = (),
        *,
        parity: bool = False,
        sigmas: Any = None,
    ):
        self.model = model = checked_model(model)
        self.guidance = checked_guidance(guidance)
        self.hooks = checked_hooks(hooks)
        self.parity = parity
        levels = {} if sigmas is None else {"sigmas": sigmas}  # a model of somebody else's may know none
        self._new_solver = model.solvers(scheduler, scheduler_options, parity=parity, **levels)
        check_plugs(self.guidance, self.hooks, model, self._new_solver())

    def sample(
        self,
        task: Task,
        *,
        seeds: Sequence[int] | int | None = None,
        steps: int,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> SampleResult:
        """Make one image a seed.

        Args:
            task: what to make, for example ``TextToImage("pizza on a blue background")``.
            seeds: whole numbers from 0, or one of them for one image; an image depends on its own seed and on nobody else's. A
                task that names its own images (``Interpolation``) needs none.
            steps: the user's steps, from 1 to what the scheduler was trained with. Some schedulers evaluate the model more often.
            batch_size: images at a time; all at once by default.
            progress: called as ``progress(done, total, info)`` after each of the user's steps that are taken, jumps back and
                both ways of an inversion counted in.

        Raises:
            UserError: steps, seeds, prompts, pictures or sizes cannot work (before anything is computed), or latents stop
                being finite.
        """
        result = gather(list(self.batches(task, seeds=seeds, steps=steps, batch_size=batch_size, progress=progress)))
        result.pictures = self.pictures(task, result.images)
        return result

    def pictures(self, task: Task, images: Sequence[Any]) -> dict[str, Any]:
        """Further pictures that model, task and hooks make of all images, by name."""
        found = dict(self.model.pictures(images)) if hasattr(self.model, "pictures") else {}
        found |= task.pictures(images)
        for hook in self.hooks:
            found |= hook.pictures(images)
        return found

    def batches(
        self,
        task: Task,
        *,
        seeds: Sequence[int] | int | None = None,
        steps: int,
        batch_size: int | None = None,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
        first: int = 0,
    ) -> Iterator[SampleResult]:
        """The same batch by batch, each given when it is ready.

        Args:
            task, seeds, steps, batch_size: as of `sample`.
            progress: ``info["rows"]`` says which images the batch has, and ``info["places"]`` where they stand among all rows.
            rows: which of the images to make, counted from 0, in this order; one may be there several times, for plugs that
                treat it differently by its place. All by default.
            first: leave out as many of the rows.
        """
        steps = check_whole_number("steps", steps, least=1)
        task = checked_task(task)
        seeds = checked_seeds(task.seeds(seeds if seeds is None or isinstance(seeds, Iterable) else [seeds]))
        check_offers("task", task, self.model, self._new_solver())
        check_negative_prompt(task, self.guidance, self.model)
        task.check(self.model, len(seeds))
        check_claims(self.hooks, task.claims(self.model), f"the task {task.name}")
        size = len(seeds) if batch_size is None else check_whole_number("batch_size", batch_size, least=1)
        asked = range(len(seeds)) if rows is None else [check_whole_number("rows", row) for row in rows]
        if asked and max(asked) >= len(seeds):
            raise ConfigError(f"rows: found {max(asked)}; accepted are 0 to {len(seeds) - 1}.")
        with torch.no_grad():
            task.prepare(self.model, len(seeds), parity=self.parity)
        for start in range(first, len(asked), size):
            batch = self._batch(task, seeds, tuple(asked[start : start + size]), steps, start)
            with batch.cleanup:
                run = self._run(batch, progress)
                with torch.no_grad(), run.timed("decode"):
                    images = task.finish(run, run.x)
            yield result_of(run, images)

    def _batch(self, task: Task, seeds: Sequence[int], rows: tuple[int, ...], steps: int, first: int = 0) -> Batch:
        solver, device = task.solver(self._solver_for(task)), self.model.device
        mine = tuple(seeds[row] for row in rows)
        timeline = task.timeline(solver, steps, device)
        for hook in in_order(self.hooks):
            timeline = hook.timeline(solver, timeline) or timeline
        return Batch(
            model=self.model,
            solver=solver,
            guidance=self.guidance,
            task=task,
            seeds=mine,
            rows=rows,
            n_images=len(seeds),
            places=tuple(range(first, first + len(rows))),
            noise=NoiseSource(mine, device, parity=self.parity),
            timeline=timeline,
            parity=self.parity,
        )

    def _solver_for(self, task: Task) -> Solver:
        """A fresh solver for the size of a task's latents."""
        solver = self._new_solver()
        if hasattr(solver, "fit"):  # a solver, or a task, of somebody else's may not ask
            known = (
                task.latent_shape(self.model) if hasattr(task, "latent_shape") else self.model.latent_shape(None, None)
            )
            solver.fit(known)
        return solver

    @torch.no_grad()
    def _run(self, batch: Batch, progress: Progress | None) -> Run:
        with batch.timed("encode"):
            guarded("start", self.guidance.start, batch)
            start = batch.task.start(batch)
            batch.solver.start(batch.noise)
            for note in batch.solver.notes:
                batch.warn(note)
        with batch.timed("denoise"):
            hooks = HookSet([*batch.task.hooks(batch), *self.hooks])
            run = Run.begin(batch, x=start, denoiser=self._denoiser(batch, hooks), model_inputs=hooks.pre_model)
            hooks.on_start(run)
            self._denoise(run, hooks, progress)
            hooks.on_end(run)
        return run

    def _denoiser(self, batch: Batch, hooks: HookSet) -> Denoiser:
        """What evaluates branches: the models that guidance asked for, what hooks put around them, and guidance outermost."""
        denoiser: Denoiser = ByModel({name: model.denoiser(batch) for name, model in batch.models.items()})
        for hook in hooks.hooks:
            denoiser = guarded("around_model", hook.around_model, batch, denoiser)
        return self.guidance.around_model(batch, denoiser)

    def _denoise(self, run: Run, hooks: HookSet, progress: Progress | None) -> None:
        """The loop."""
        guidance, solver = self.guidance, run.solver
        guided_by = plug_name("combine", guidance.combine)
        x, ticks = run.x, [time.perf_counter()]
        done, total = 0, sum(stage.last_of_step for stage in run.timeline)
        last: Stage | None = None
        recent: list[tuple[Stage, Tensor]] = []
        for stage in run.timeline:
            if last is not None and not _goes_on(run, last, stage):
                guidance.forget()
            last = stage
            state = StepState(run, stage, x)
            hooks.pre_step(state)
            state.x_before = state.x
            state.branches = guarded("branches", guidance.branches, state)
            with _gradients(guidance, state):
                state.predictions = hooks.post_model(state, state.predict(state.branches))
                state.guided = guarded("combine", guidance.combine, state, state.predictions)
            check_guided(guided_by, state, x)
            hooks.post_guidance(state)
            state.x = solver.step(state.guided, state.x, stage, run.noise).x
            if state.guided.shift is not None:
                state.x = (state.x + state.guided.shift).to(state.x.dtype)
            hooks.post_step(state)
            x = state.x
            recent.append((stage, x))
            if len(recent) == _STAGES_BETWEEN_LOOKS:  # now and then: at each stage it would stall a GPU
                _raise_unless_finite(run, recent)
            ticks.append(time.perf_counter())
            done += stage.last_of_step
            if progress is not None and stage.last_of_step:
                progress(done, total, {"rows": run.rows, "places": run.places, "sigma": stage.sigma})
        run.x = x
        _raise_unless_finite(run, recent)
        run.trace["stages"] = [
            {"index": s.index, "step": s.step, "t": s.time, "sigma": s.sigma, "log_snr": s.log_snr, "seconds": b - a}
            for s, a, b in zip(run.timeline, ticks, ticks[1:], strict=False)
        ]


def _goes_on(run: Run, last: Stage, stage: Stage) -> bool:
    """Whether a stage has the latents that the last one led to, on the same way."""
    return stage.index == last.index + 1 and last.index != run.solver.turn


class ByModel:
    """The denoisers of a run by the names that branches call their models. Branches of one model are evaluated together."""

    def __init__(self, denoisers: Mapping[str, Denoiser]):
        self.denoisers = denoisers

    def predict(self, x: Tensor, stage: Stage, branches: Sequence[Branch]) -> dict[str, Prediction]:
        for branch in branches:
            if branch.model != "main":
                break
        else:
            return self.denoisers["main"].predict(x, stage, branches)
        by_model: dict[str, list[Branch]] = {}
        for branch in branches:
            by_model.setdefault(branch.model, []).append(branch)
        if unknown := sorted(by_model.keys() - self.denoisers.keys()):
            raise SamplingError(
                f"guidance: a branch asks for the model '{unknown[0]}'; this run has {', '.join(self.denoisers)}."
            )
        found: dict[str, Prediction] = {}
        for name, mine in by_model.items():
            found |= self.denoisers[name].predict(x, stage, mine)
        return {branch.name: found[branch.name] for branch in branches}


def _gradients(guidance: Guidance, state: StepState) -> AbstractContextManager[None]:
    """Where a guidance differentiates, predictions are made with gradients with respect to ``state.x_before``."""
    return _differentiating(state) if guidance.differentiates(state) else _WITHOUT


_WITHOUT: AbstractContextManager[None] = nullcontext()
_STAGES_BETWEEN_LOOKS = 16  # at latents that are no numbers: a run of a thousand stages ends soon after they appear


@contextmanager
def _differentiating(state: StepState) -> Iterator[None]:
    with torch.enable_grad():
        state.x_before = state.x.detach().requires_grad_()
        yield
    # nothing keeps the graph alive; detached here and not in each guidance, so that one around another sees its gradient
    state.x_before = state.x
    state.predictions = {name: _detached(p) for name, p in state.predictions.items()}
    if isinstance(state.guided, Guided):
        renoise, shift = state.guided.renoise, state.guided.shift
        state.guided = Guided(
            _detached(state.guided.prediction),
            renoise and _detached(renoise),
            shift.detach() if isinstance(shift, Tensor) else shift,
        )


def _detached(prediction: Any) -> Any:
    """A prediction without its graph; anything else is left for the check of what a guidance returns."""
    return Prediction(prediction.value.detach(), prediction.kind) if isinstance(prediction, Prediction) else prediction


def _raise_unless_finite(run: Run, recent: list[tuple[Stage, Tensor]]) -> None:
    """Look at the latents after the last stages walked, and forget them. What is no number makes all after it none: the newest
    are read, and the ones before only to name the first that is bad."""
    run.look_now()  # first, as it says where what is not finite comes from
    if recent and not _finite(recent[-1][1]):
        stage = next(stage for stage, x in recent if not _finite(x))
        raise SamplingError(
            f"latents: not finite (NaN or infinite) after stage {stage.index}, step {stage.step + 1} of {stage.n_steps}"
            f" (t = {stage.time:g}), scheduler {run.solver.name}, dtype {run.model.dtype}."
        )
    recent.clear()


def _finite(x: Tensor) -> bool:
    """Whether latents are numbers; waits for a GPU."""
    return math.isfinite(x.sum(dtype=torch.float32))

"""The denoising loop: the only place in the project that walks over timesteps and calls a model."""

from __future__ import annotations

import copy
import math
import os
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor

from research.arguments import short
from research.checks import check_whole_number
from research.errors import ConfigError, SamplingError
from research.progress_bar import told
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
from research.sampling.memory import OWNER, changed, check_plain, gathered, memories, within
from research.sampling.noise import NoiseSource
from research.sampling.prediction import Prediction
from research.sampling.result import Progress, SampleResult, gather, result_of
from research.sampling.timeline import Stage
from research.showing import card


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

    candidates = images_together = 1  # see `research.sampling.result.BatchSampler`

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
        progress: Progress | bool | None = None,
    ) -> SampleResult:
        """Make one image a seed.

        Args:
            task: what to make, for example ``TextToImage("pizza on a blue background")``.
            seeds: whole numbers from 0, or one of them for one image; an image depends on its own seed and on nobody else's. A
                task that names its own images (``Interpolation``) needs none.
            steps: the user's steps, from 1 to what the scheduler was trained with. Some schedulers evaluate the model more often.
            batch_size: images at a time; all at once by default.
            progress: by default a bar where somebody looks, in a notebook or on a terminal; False for none, True for one
                everywhere. Or a function that is called as ``progress(done, total, info)`` after each of the steps that are
                taken, jumps back and both ways of an inversion counted in.

        Raises:
            UserError: steps, seeds, prompts, pictures or sizes cannot work (before anything is computed), or latents stop
                being finite.
        """
        if isinstance(seeds, Iterable):
            seeds = list(seeds)
        with told(progress, seeds, str(getattr(task, "name", ""))) as listener:
            parts = self.batches(task, seeds=seeds, steps=steps, batch_size=batch_size, progress=listener)
            result = gather(list(parts))
        result.pictures = self.pictures(task, result.images)
        return result

    def _settings(self) -> dict[str, Any]:
        return {
            "model": repr(self.model),
            "scheduler": self._new_solver().name,
            "guidance": short(self.guidance),
            "hooks": ", ".join(map(short, self.hooks)),
            "parity": "true" if self.parity else "",
        }

    def __repr__(self) -> str:
        said = [f"{key}={value}" if key != "model" else value for key, value in self._settings().items() if value]
        return f"LoopSampler({', '.join(said)})"

    def _repr_html_(self) -> str:
        return card("LoopSampler", self._settings())

    def with_plugs(self, guidance: Guidance, hooks: Sequence[Hook]) -> Self:
        """The same loop with other guidance and hooks.

        Raises:
            ConfigError: they do not fit model and scheduler.
        """
        found = copy.copy(self)
        found.guidance, found.hooks = checked_guidance(guidance), checked_hooks(hooks)
        check_plugs(found.guidance, found.hooks, self.model, self._new_solver())
        return found

    @property
    def loop(self) -> LoopSampler:
        return self

    def new_solver(self) -> Solver:
        """A fresh solver of its scheduler, to be asked what it offers."""
        return self._new_solver()

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
        known, steps, asked = self.asked(task, seeds, steps, rows)
        size = len(known) if batch_size is None else check_whole_number("batch_size", batch_size, least=1)
        for start in range(first, len(asked), size):
            rows_of_batch = tuple(asked[start : start + size])
            with (
                self.trajectory(task, known, steps, rows_of_batch, first=start) as trajectory,
                torch.no_grad(),  # once, and not at each stage
            ):
                if progress is not None:
                    for state in trajectory:
                        trajectory.tell(progress, state.stage)
                result = trajectory.finish()
            yield result

    def steps(
        self,
        task: Task,
        *,
        seeds: Sequence[int] | int | None = None,
        steps: int,
        rows: Sequence[int] | None = None,
        noise_seeds: Sequence[int] | None = None,
        noise: Tensor | None = None,
        gradients: bool = False,
        state: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    ) -> Trajectory:
        """One batch, a stage at a time: ``for state in sampler.steps(...): state.x, state.x0, state.stage``.

        Args:
            task, seeds, steps: as of `sample`.
            rows: which of the images the batch has, as of `batches`.
            noise_seeds: of each of the rows, in place of the seed asked for: another noise for the same prompt and picture.
            noise: standard normal start noise [N, C, h, w], in place of what is drawn.
            gradients: record what the stages compute for autograd.
            state: go on from there: a file of `Trajectory.save`, or what `Trajectory.state` gave. It must be of the same
                images, steps, scheduler and plugs.

        Raises:
            UserError: as `sample`; or the state is of another run.
        """
        known, steps, asked = self.asked(task, seeds, steps, rows)
        mine = None if noise_seeds is None else tuple(checked_seeds(noise_seeds))
        if mine is not None and len(mine) != len(asked):
            raise ConfigError(f"noise_seeds: found {len(mine)} for {len(asked)} images; accepted is one an image.")
        given = None if state is None else read_state(state)
        return self.trajectory(
            task, known, steps, tuple(asked), noise_seeds=mine, noise=noise, gradients=gradients, state=given
        )

    def trajectory(
        self,
        task: Task,
        seeds: Sequence[int],
        steps: int,
        rows: tuple[int, ...],
        *,
        first: int = 0,
        noise_seeds: tuple[int, ...] | None = None,
        noise: Tensor | None = None,
        gradients: bool = False,
        state: Mapping[str, Any] | None = None,
    ) -> Trajectory:
        """As `steps`, once `asked` has looked at the arguments and made the task ready.

        Args:
            first: the place of the first row among all that are asked for.
        """
        batch = self._batch(task, seeds, rows, steps, first, noise_seeds, noise)
        return Trajectory(self, batch, gradients=gradients, state=state)

    def asked(
        self, task: Task, seeds: Sequence[int] | int | None, steps: int, rows: Sequence[int] | None = None
    ) -> tuple[list[int], int, Sequence[int]]:
        """Seeds, steps and rows as they are used, once it is checked that the task can be done with them, and the task is ready.

        Raises:
            UserError: see `sample`.
        """
        steps = check_whole_number("steps", steps, least=1)
        task = checked_task(task)
        known = checked_seeds(task.seeds(seeds if seeds is None or isinstance(seeds, Iterable) else [seeds]))
        check_offers("task", task, self.model, self._new_solver())
        check_negative_prompt(task, self.guidance, self.model)
        task.check(self.model, len(known))
        check_claims(self.hooks, task.claims(self.model), f"the task {task.name}")
        asked = range(len(known)) if rows is None else [check_whole_number("rows", row) for row in rows]
        if asked and max(asked) >= len(known):
            raise ConfigError(f"rows: found {max(asked)}; accepted are 0 to {len(known) - 1}.")
        with torch.no_grad():
            task.prepare(self.model, len(known), parity=self.parity)
        return known, steps, asked

    def _batch(
        self,
        task: Task,
        seeds: Sequence[int],
        rows: tuple[int, ...],
        steps: int,
        first: int = 0,
        noise_seeds: tuple[int, ...] | None = None,
        noise: Tensor | None = None,
    ) -> Batch:
        solver, device = task.solver(self._solver_for(task)), self.model.device
        mine = tuple(seeds[row] for row in rows) if noise_seeds is None else noise_seeds
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
            noise=NoiseSource(mine, device, parity=self.parity, initial=noise),
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

    def denoiser(self, batch: Batch, hooks: HookSet) -> Denoiser:
        """What evaluates branches: the models that guidance asked for, what hooks put around them, and guidance outermost."""
        denoiser: Denoiser = ByModel({name: model.denoiser(batch) for name, model in batch.models.items()})
        for hook in hooks.hooks:
            denoiser = guarded("around_model", hook.around_model, batch, denoiser)
        return self.guidance.around_model(batch, denoiser)


_last_taken: list[object] = [None]  # the token of the trajectory that took its plugs last


class Trajectory:
    """A batch on its way through the loop, a stage at a time: iterate over it, then `finish`. Made by `LoopSampler.steps`.

    Each iteration gives the `StepState` of the stage that was taken. Between two of them the way can be copied, saved to a file,
    and gone on with: each goes on as if there were no other, with latents, the solver's history, what guidance and hooks keep,
    and noise of its own. As a context manager it gives back at the end what the run holds.

    Attributes:
        run: what plugs see of it.
        x: the latents [N, C, h, w] now; may be replaced by others of the same shape.
        place: how many of the stages are behind it.
        steps_done, steps_total: of the user's steps.
    """

    def __init__(
        self, sampler: LoopSampler, batch: Batch, *, gradients: bool = False, state: Mapping[str, Any] | None = None
    ):
        self.sampler, self.place, self._gradients = sampler, 0, gradients
        self.stages = list(batch.timeline)
        self._ended = list(accumulate((int(stage.last_of_step) for stage in self.stages), initial=0))
        self._seconds: list[float] = []
        self._accounted = 0  # of them, in the run's timings
        self._aside: dict[int, dict[str, Any]] = {}
        self._remembered: list[dict[str, Any]] | None = None
        self._recent: list[tuple[Stage, Tensor]] = []
        self._last: Stage | None = None
        self._token = object()
        self._holders, self._cleanup, self._closed = [0], batch.cleanup, False
        self._holders[0] += 1
        self._plugs = within([batch.guidance, *sampler.hooks])
        try:
            self._take()
            with torch.set_grad_enabled(gradients):
                self._begin(batch)
            if state is not None:
                self._go_to(state)
        except BaseException:
            self.close()
            raise
        self._walk = self._denoise()

    def _begin(self, batch: Batch) -> None:
        with batch.timed("encode"):
            guarded("start", batch.guidance.start, batch)
            start = batch.task.start(batch)
            batch.solver.start(batch.noise)
            for note in (*batch.model.notes, *batch.solver.notes):
                batch.warn(note)
        with batch.timed("denoise"):
            self.hooks = HookSet([*batch.task.hooks(batch), *self.sampler.hooks])
            denoiser = self.sampler.denoiser(batch, self.hooks)
            self.run = run = Run.begin(batch, x=start, denoiser=denoiser, model_inputs=self.hooks.pre_model)
            self.hooks.on_start(run)
        self.x = run.x
        self._plugs, self._token = within([run.guidance, *self.hooks.hooks, run.denoiser]), object()

    @property
    def steps_total(self) -> int:
        return self._ended[-1]

    @property
    def steps_done(self) -> int:
        return self._ended[self.place]

    @property
    def stage(self) -> Stage | None:
        """The stage that is taken next; None at the end."""
        return self.stages[self.place] if self.place < len(self.stages) else None

    def __iter__(self) -> Trajectory:
        return self

    def __next__(self) -> StepState:
        start = time.perf_counter()
        if _last_taken[0] is not self._token or self._remembered is not None:
            self._take()
        if torch.is_grad_enabled() is self._gradients:
            state = next(self._walk)
        else:
            with torch.set_grad_enabled(self._gradients):
                state = next(self._walk)
        self._seconds.append(time.perf_counter() - start)
        return state

    def tell(self, progress: Progress, stage: Stage) -> None:
        """Call ``progress`` after the last stage of a step; see `LoopSampler.batches`."""
        if stage.last_of_step:
            info = {"rows": self.run.rows, "places": self.run.places, "sigma": stage.sigma}
            progress(self.steps_done, self.steps_total, info)

    def _account(self) -> None:
        """Add the seconds of the stages that were taken since the last time to the run's."""
        timings = self.run.timings
        timings["denoise"] = timings.get("denoise", 0.0) + sum(self._seconds[self._accounted :])
        self._accounted = len(self._seconds)

    def _denoise(self) -> Iterator[StepState]:
        """The loop."""
        run, hooks = self.run, self.hooks
        guidance, solver = run.guidance, run.solver
        guided_by = plug_name("combine", guidance.combine)
        for stage in self.stages[self.place :]:
            x, last = self.x, self._last
            if last is not None and not _goes_on(run, last, stage):
                guidance.forget()
            self._last = stage
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
            self.x = state.x
            self.place += 1
            self._recent.append((stage, state.x))
            if len(self._recent) == _STAGES_BETWEEN_LOOKS:  # now and then: at each stage it would stall a GPU
                _raise_unless_finite(run, self._recent)
            yield state

    def finish(self) -> SampleResult:
        """The images of the final latents, and what they cost. Stages that are left are taken first.

        Raises:
            SamplingError: the latents are not finite.
        """
        for _ in self:
            pass
        run = self.run
        self._take()
        self._account()
        with torch.no_grad():
            with run.timed("denoise"):
                run.x = self.x.detach()
                _raise_unless_finite(run, self._recent)
                run.trace["stages"] = [
                    {
                        "index": s.index,
                        "step": s.step,
                        "t": s.time,
                        "sigma": s.sigma,
                        "log_snr": s.log_snr,
                        "seconds": b,
                    }
                    for s, b in zip(self.stages, self._seconds, strict=False)
                ]
                self.hooks.on_end(run)
            with run.timed("decode"):
                images = run.task.finish(run, run.x)
        found = result_of(run, images)
        self.close()
        return found

    # -- as a state

    def copy(self) -> Trajectory:
        """Another one that stands where this one does. Either goes on as if it were alone."""
        self._take()
        self._account()
        found = copy.copy(self)
        found._holders[0] += 1
        found._token = object()
        found.run = run = copy.copy(self.run)
        run.noise, run.nfe = run.noise.copy(), Counter(run.nfe)
        run.solver = _copy_of(run.solver, run.noise)
        for name in ("timings", "trace", "scores", "warnings", "truncated", "task_tensors", "looks", "models"):
            setattr(run, name, changed(getattr(run, name), _same) if name == "trace" else copy.copy(getattr(run, name)))
        found._seconds, found._recent = list(self._seconds), list(self._recent)
        found._aside = {id(plug): dict(vars(plug)) for plug in self._plugs}
        found._remembered = [changed(each, torch.clone) for each in memories(self._plugs)]
        found._walk = found._denoise()
        return found

    def state(self) -> dict[str, Any]:
        """All that it takes to go on from here, in this process or another: tensors, numbers and words, in lists and dicts.

        Raises:
            SamplingError: a plug keeps something else; ConfigError: the scheduler cannot be saved.
        """
        self._take()
        self._account()
        run = self.run
        kept: dict[str, Any] = {
            "format": _STATE_FORMAT,
            "of": self._fingerprint(),
            "x": self.x.detach(),
            "start_noise": run.start_noise,
            "place": self.place,
            "last": None if self._last is None else self._last.index,
            "plugs": memories(self._plugs),
            "solver": dict(_memory_of(run.solver)),
            "noise": run.noise.states(),
            "nfe": dict(run.nfe),
            "seconds": list(self._seconds),
            **{name: getattr(run, name) for name in _OF_RUN},
        }
        check_plain(kept, "trajectory")
        return {name: changed(value, torch.clone) for name, value in kept.items()}

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write `state` to a file, all at once."""
        place = Path(file)
        part = place.with_name(f".{place.name}.part")
        torch.save(self.state(), part)
        os.replace(part, place)

    def resample(self, ancestors: Sequence[int]) -> None:
        """Have each image go on from where another of the same row stands; see `exchange`."""
        exchange([self], ancestors)

    def go_back(self, place: int, x: Tensor) -> None:
        """Stand before an earlier stage (or a later one), with other latents [N, C, h, w] of its level.

        Raises:
            ConfigError: the scheduler has a memory, which would be of other latents.
        """
        if "revisits" not in self.run.solver.supports:
            raise ConfigError(
                f"scheduler: {self.run.solver.name} cannot go back to a step; accepted are first-order ones, without parity."
            )
        self._take()
        self.place, self.x = place, x
        self._walk = self._denoise()

    def close(self) -> None:
        """Give back what the run holds. `finish` does so too."""
        if self._closed:
            return
        self._closed = True
        if hasattr(self, "run"):
            self._account()
        for plug in self._plugs:
            if (owner := vars(plug).get(OWNER)) is not None and owner() in (self, None):
                del vars(plug)[OWNER]
        self._holders[0] -= 1
        if not self._holders[0]:
            self._cleanup.close()

    def __enter__(self) -> Trajectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if "_closed" in vars(self):
            self.close()

    def _take(self) -> None:
        """Have the plugs, which several trajectories may share, hold what they keep of this one."""
        for plug in self._plugs:
            held = vars(plug)
            owner = None if OWNER not in held else held[OWNER]()
            if owner is self:
                continue
            if owner is not None and not owner._closed:
                owner._aside[id(plug)] = dict(held)
            if (mine := self._aside.pop(id(plug), None)) is not None:
                held.clear()
                held.update(mine)
            held[OWNER] = weakref.ref(self)
        if self._remembered is not None:
            kept, self._remembered = self._remembered, None
            for plug, memory in zip(self._plugs, kept, strict=True):
                if memory:
                    plug.remember(memory)
        _last_taken[0] = self._token

    def _fingerprint(self) -> dict[str, Any]:
        """What a state is of: it can be gone on with where this is the same."""
        run = self.run
        return {
            "task": run.task.name,
            "seeds": list(run.seeds),
            "rows": list(run.rows),
            "model": str(run.model.weights_sha256 or run.model.name),
            "scheduler": run.solver.name,
            "plugs": [type(plug).__name__ for plug in self._plugs],
            "timesteps": [stage.time for stage in self.stages],
            "parity": run.parity,
        }

    def _go_to(self, state: Mapping[str, Any]) -> None:
        """Stand where a state does.

        Raises:
            ConfigError: it is of another run.
        """
        now = self._fingerprint()
        for name, value in now.items():
            if state["of"].get(name) != value:
                raise ConfigError(
                    f"state: is of a run with {name} {state['of'].get(name)!r:.80}; this one has {value!r:.80}."
                )
        run, device = self.run, self.run.model.device
        state = {
            **state,
            **{k: changed(state[k], lambda t: t.to(device)) for k in ("x", "start_noise", "plugs", "solver")},
        }
        self.x, run.start_noise, self.place = state["x"], state["start_noise"], state["place"]
        self._last = None if state["last"] is None else run.timeline[state["last"]]
        for plug, memory in zip(self._plugs, state["plugs"], strict=True):
            if memory:
                plug.remember(memory)
        if state["solver"]:
            cast(Any, run.solver).remember(state["solver"])
        run.noise.go_to(state["noise"])
        run.nfe = Counter(state["nfe"])
        self._seconds = list(state["seconds"])
        self._accounted = len(self._seconds)
        for name in _OF_RUN:
            setattr(run, name, changed(state[name], _same))


def exchange(trajectories: Sequence[Trajectory], ancestors: Sequence[int]) -> None:
    """Have each image go on from where another of the same row stands: ``ancestors[k]`` is whose place image ``k`` takes.

    Latents, the solver's history and what guidance and hooks keep go along; noise does not, so that copies of one image part at
    the next noise that is drawn.

    Args:
        trajectories: of one sampler and task, at the same stage. Their images are counted through.

    Raises:
        SamplingError: images of different rows, whose prompts and pictures are others.
    """
    rows = [row for trajectory in trajectories for row in trajectory.run.rows]
    if len(ancestors) != len(rows) or any(rows[a] != rows[k] for k, a in enumerate(ancestors)):
        raise SamplingError(f"ancestors: found {list(ancestors)}; accepted is for each image one of its own row.")
    if list(ancestors) == list(range(len(rows))):
        return
    counts, kept = [len(each.run.rows) for each in trajectories], []
    for trajectory in trajectories:
        trajectory._take()
        run = trajectory.run
        moved = [trajectory.x, run.start_noise, memories(trajectory._plugs), dict(_memory_of(run.solver))]
        kept.append(changed(moved, torch.clone) if len(trajectories) > 1 else moved)
    chosen, first = torch.tensor(list(ancestors)), 0
    for place, (trajectory, count) in enumerate(zip(trajectories, counts, strict=True)):
        mine = gathered(kept, place, counts, chosen[first : first + count])
        first += count
        trajectory._take()
        run = trajectory.run
        trajectory.x, run.start_noise, plugs, solver = mine
        for plug, memory in zip(trajectory._plugs, plugs, strict=True):
            if memory:
                plug.remember(memory)
        if solver:
            cast(Any, run.solver).remember(solver)


_STATE_FORMAT = 1
_OF_RUN = ("timings", "trace", "scores", "warnings", "truncated")


def read_state(state: Mapping[str, Any] | str | os.PathLike[str]) -> Mapping[str, Any]:
    """What `Trajectory.state` gave, or a file of it. No code in a file is run.

    Raises:
        ConfigError: the file cannot be read, or is none.
    """
    if not isinstance(state, Mapping):
        try:
            found = torch.load(state, map_location="cpu", weights_only=True)
        except OSError as error:
            raise ConfigError(f"state: {state} cannot be read: {error.strerror or error}.") from error
        except Exception as error:  # a file of any kind
            raise ConfigError(f"state: {state} is no file of a trajectory.") from error
        state = found
    known = {"of", "x", "start_noise", "place", "last", "plugs", "solver", "noise", "nfe", "seconds", *_OF_RUN}
    if not isinstance(state, Mapping) or not known <= state.keys() or not isinstance(state["of"], Mapping):
        raise ConfigError("state: found something else; accepted is what Trajectory.save wrote.")
    if state.get("format") != _STATE_FORMAT:
        raise ConfigError(f"state: found format {state.get('format')!r}; accepted is {_STATE_FORMAT}.")
    return state


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _memory_of(solver: Solver) -> Mapping[str, Any]:
    """What a solver keeps from stage to stage.

    Raises:
        ConfigError: a solver of somebody else's that does not say.
    """
    if hasattr(solver, "memory"):
        found: Mapping[str, Any] = solver.memory()
        return found
    if "first-order" in solver.supports:
        return {}
    raise ConfigError(
        f"scheduler: {solver.name} has no memory() and remember(memory), which a run that is copied or saved asks for."
    )


def _copy_of(solver: Solver, noise: NoiseSource) -> Solver:
    """A solver that goes on by itself from where another stands, with other noise."""
    memory = changed(dict(_memory_of(solver)), torch.clone)
    found: Any = solver.copy(noise) if hasattr(solver, "copy") else copy.copy(solver)
    if memory:
        found.remember(memory)
    return cast(Solver, found)


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

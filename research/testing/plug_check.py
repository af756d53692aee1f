"""A plug put through the rules that the interfaces state, on small networks of each kind of prediction, in seconds.

``check_plug(obj)`` says which rule is broken, where, and what to do; ``research-check`` is the same on the command line.
Rules that can be looked up without running anything are in `research.testing.plug_rules`; they run by themselves before a sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from research.errors import ConfigError, UserError, one_line
from research.guidance import CFG
from research.guidance.wrapping import Wrapping
from research.hooks import Restart
from research.metrics.base import MetricResult, as_metric
from research.metrics.job import ScoredJob
from research.sampling import Guidance, Hook, LoopSampler, SampleResult
from research.sampling.loop import Trajectory
from research.sampling.prediction import KINDS, Kind
from research.tasks import Inversion, TextToImage, Unconditional
from research.testing.networks import PIXELS, tiny_pixel_model, tiny_text_model
from research.testing.plug_rules import Finding, Role, place_of, role_of, static_findings
from research.testing.sampler_check import check_sampler
from research.testing.solver_check import check_order, check_plan, solver_place
from research.testing.watched import (
    Faulty,
    WatchedSolver,
    fresh,
    global_noise_kept,
    global_state,
    guidance_checks,
    hook_checks,
    watched,
)

STEPS = 4
PROMPTS = ("a cat", "an owl", "a fox")
SEEDS = (11, 12, 13)
# A batch runs through other kernels than a single image. Measured on these networks, that is below 6e-7 of the norm for
# the project's guidances; one that divides by the spread of a batch of like images is off by 2e-4.
TOLERANCE = 3e-5
_NEUTRAL = 1e-3  # other formulas for the same thing differ by more than kernels do
_FLOW = {"ddim": "flow_euler", "heun": "flow_heun", "euler": "flow_euler"}


@dataclass
class Report:
    """What became of a check.

    Attributes:
        plug: the name of its class.
        role: "guidance", "hook", "metric", "solver", "linear solver", "task" or "model".
        findings: the rules that it breaks, errors first; none where all is well.
        checked: the rules that were looked at.
        skipped: what could not be looked at, and why.
        notes: what was measured and breaks no rule.
    """

    plug: str
    role: Role
    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        head = f"{self.plug} ({self.role}): "
        head += f"{len(self.checked)} rules hold" if self.ok else f"{len(self.findings)} found"
        lines = [head, *(f"  {finding}" for finding in self.findings), *(f"  {line}" for line in self.notes)]
        lines += [f"  skipped: {line}" for line in self.skipped]
        return "\n".join(lines)


def check_plug(plug: object, *, role: Role | None = None) -> Report:
    """Put a plug through the rules of its interface: a guidance, a hook, a metric, a scheduler, a task, a model or a sampler. It
    takes seconds, and no files.

    Looked at are names of methods and their arguments; what is returned (type, shape, dtype, kind, finite); whether arguments are
    changed in place; whether noise comes from the run; images alone, together and in another order; a second run with the same
    object; each kind of prediction; half precision; a second-order and a multistep scheduler; jumps back; inversion; and of a
    guidance, that the scale which ``neutral`` names is no guidance. A scheduler is an object of its class, with the interface
    of diffusers, a `Solver`, or a `LinearSolver`, whose numbers and order are looked at too; it, a task and a model are looked at
    in whole runs.

    Args:
        plug: an object of the class, built with the arguments that it is to be checked with. It is run; state that it keeps is
            that of the last run.
        role: what it is; by default its class or its methods say.

    Returns:
        A report; ``report.ok`` where nothing was found, and ``print(report)`` for the rest.

    Raises:
        ConfigError: it is a class and no object, or none of these plugs.
    """
    if isinstance(plug, type):
        raise ConfigError(f"check_plug: found the class {plug.__name__}; accepted is an object: {plug.__name__}(...).")
    found_role = role or role_of(plug)
    if found_role is None:
        raise ConfigError(
            f"check_plug: found {type(plug).__name__}, no plug that is known by its methods; accepted are objects of a guidance, "
            "hook, metric, scheduler, task, model or sampler."
        )
    report = Report(type(plug).__name__, found_role)
    report.findings += static_findings(plug, found_role)
    report.checked += ["base class", "method name", "arguments", "requires"]
    if not any(finding.severity == "error" or finding.rule == "requires" for finding in report.findings):
        with global_noise_kept(), _one_thread():
            _CHECKS[found_role](plug, report)
    report.findings = _each_once(report.findings)
    report.checked = list(dict.fromkeys(report.checked))
    return report


def _each_once(findings: Sequence[Finding]) -> list[Finding]:
    kept: dict[tuple[str, str], Finding] = {}
    for finding in sorted(findings, key=lambda each: each.severity != "error"):
        kept.setdefault((finding.rule, finding.place), finding)
    return list(kept.values())


# -- guidances and hooks: run in the loop


@dataclass
class _Bench:
    """Runs a plug in the loop, and keeps what is found."""

    plug: Any
    role: Role
    report: Report

    def found(self, finding: Finding) -> None:
        self.report.findings.append(finding)

    def sample(
        self,
        plug: Any,
        seeds: Sequence[int] = SEEDS[:2],
        *,
        kind: Kind = "epsilon",
        scheduler: str = "ddim",
        dtype: torch.dtype = torch.float32,
        inversion: bool = False,
        hooks: Sequence[Hook] = (),
        unwatched: bool = False,
    ) -> Tensor:
        """The final latents, one a seed; each seed has a prompt of its own."""
        on_pixels = _on_pixels(self.plug)
        model: Any = tiny_pixel_model(kind, dtype) if on_pixels else tiny_text_model(kind, dtype)
        places = [SEEDS.index(seed) for seed in seeds]
        prompts = [PROMPTS[place] for place in places]
        scheduler = _FLOW.get(scheduler, scheduler) if kind == "flow" else scheduler
        usual = Guidance() if on_pixels else CFG(3.0)
        guidance, mine = (plug, []) if self.role == "guidance" else (usual, [plug])
        sampler = LoopSampler(model, scheduler, guidance=guidance, hooks=[*hooks, *mine])
        task: Any = Unconditional(places) if on_pixels else TextToImage(prompts)
        if inversion and on_pixels:
            raise ConfigError("models on pixels have no inversion.")
        if inversion:
            task = Inversion(prompts, _picture())
        half = dtype != torch.float32
        with ExitStack() as stack:
            if not unwatched:
                stack.enter_context(self.watch(plug, model, half=half))
            return sampler.sample(task, seeds=list(seeds), steps=STEPS, progress=False).latents.float()

    def steps(self, plug: Any, state: Any = None) -> Trajectory:
        """The run of `sample`, a stage at a time."""
        on_pixels = _on_pixels(self.plug)
        model: Any = (
            tiny_pixel_model("epsilon", torch.float32) if on_pixels else tiny_text_model("epsilon", torch.float32)
        )
        usual = Guidance() if on_pixels else CFG(3.0)
        guidance, mine = (plug, []) if self.role == "guidance" else (usual, [plug])
        task: Any = Unconditional([0, 1]) if on_pixels else TextToImage(PROMPTS[:2])
        sampler = LoopSampler(model, "ddim", guidance=guidance, hooks=mine)
        return sampler.steps(task, seeds=list(SEEDS[:2]), steps=STEPS, state=state)

    def watch(self, plug: Any, model: Any, *, half: bool) -> Any:
        if self.role == "guidance":
            return watched(plug, guidance_checks(self.found, half=half), self.found)
        channels = int(model.network_config["in_channels"])
        return watched(plug, hook_checks(plug, self.found, channels, half=half), self.found)

    def attempt(
        self, rule: str, run: Callable[[], Tensor | None], cure: str, *, refusals: bool = True
    ) -> Tensor | None:
        """What a run gives; None where it failed, which is a finding unless the plug refuses it in a sentence of its own."""
        before = len(self.report.findings)
        self.report.checked.append(rule)
        try:
            return run()
        except Faulty:
            return None
        except ConfigError as error:
            if refusals or _refused_by(self.plug, error):
                self.report.skipped.append(f"{rule}: refused ({str(error).splitlines()[0].rstrip('.')})")
            else:
                self.found(Finding("error", rule, place_of(self.plug), one_line(error), cure))
            return None
        except Exception as error:
            if len(self.report.findings) == before:
                self.found(Finding("error", rule, _raised_in(self.plug, error), f"raises {_first(error)}", cure))
            return None


def _on_pixels(plug: Any) -> bool:
    """Whether a plug asks for what models on pixels alone have: pixels, or a class."""
    return bool({"pixels", "class_label"} & set(getattr(plug, "requires", ())))


def _check_in_loop(role: Role, plug: Any, report: Report) -> None:
    bench = _Bench(plug, role, report)
    _own_methods(bench)
    cure = (
        "Conditions are state.conditions['cond'] and ['uncond']; predictions go by the names of the branches asked for."
    )
    first = bench.attempt("runs", lambda: bench.sample(fresh(plug)), cure, refusals=False)
    report.checked += ["returned type", "shape", "kind", "dtype", "finite", "in place", "noise", "assignment"]
    if first is None or any(finding.severity == "error" and finding.rule != "dtype" for finding in report.findings):
        return
    _batches(bench, first)
    _state(bench, first)
    _memory(bench, first)
    if any(finding.severity == "error" and finding.rule != "dtype" for finding in report.findings):
        return  # what follows would only say it again
    for kind in KINDS:
        if kind != "epsilon":
            told = "Convert by kind, research.sampling.convert(p, kind, state.x_before, state.stage), or use what is linear."
            bench.attempt(f"prediction kind {kind}", partial(bench.sample, fresh(plug), kind=kind), told)
    if role == "guidance":
        _neutral(bench)
    half = "Compute in float32 where numbers are divided or squared, and hand back the dtype of the model."
    bench.attempt("half precision", lambda: bench.sample(fresh(plug), dtype=torch.bfloat16), half)
    order = "A step may evaluate the model twice: keep by state.stage.step and not by how often you were called."
    bench.attempt("second-order solver", lambda: bench.sample(fresh(plug), scheduler="heun"), order)
    bench.attempt("multistep solver", lambda: bench.sample(fresh(plug), scheduler="dpmpp_2m"), order)
    back = (
        "The walk may go back to an earlier stage: look at state.stage.index, and keep nothing that goes one way only."
    )
    bench.attempt("jumps back", lambda: bench.sample(fresh(plug), hooks=[Restart(steps=(0.3, 0.8))]), back)
    trip = "Inversion walks to the noise and back: stages come in rising order first."
    bench.attempt("inversion", lambda: bench.sample(fresh(plug), inversion=True), trip)


def _own_methods(bench: _Bench) -> None:
    """That a guidance can be copied at another scale, which modifiers and planning do."""
    if bench.role == "guidance" and not isinstance(getattr(bench.plug, "scale", 1.0), int | float):
        cure = "scale is one number; further settings have names of their own."
        bench.found(Finding("error", "scale", place_of(bench.plug), f"scale is {bench.plug.scale!r}", cure))


def _state(bench: _Bench, first: Tensor) -> None:
    """A second run of one object is like the first, after one of as many images and after one of fewer."""
    kept = "Keep nothing from run to run: set what is kept from step to step in "
    kept += "start(run)." if bench.role == "guidance" else "on_start(run)."
    for said, before in (("the same seeds", SEEDS[:2]), ("fewer images", SEEDS[:1])):

        def run(before: Sequence[int] = before) -> Tensor:
            one = fresh(bench.plug)
            bench.sample(one, before, unwatched=True)
            return bench.sample(one, unwatched=True)

        second = bench.attempt("state", run, kept)
        if second is None:
            return
        if not _close(second, first, 1e-6):
            problem = f"gives other images in a second run of the same object, after one of {said}"
            bench.found(Finding("error", "state", place_of(bench.plug), problem, kept))
            return


def _memory(bench: _Bench, first: Tensor) -> None:
    """A run that is taken up again from its state, with another object, ends as the straight run does."""
    cure = "Name what one stage leaves to the next in keeps (attributes of tensors [N, ...], numbers, lists), or write "
    cure += "memory() and remember(memory)."

    def run() -> Tensor:
        begun = bench.steps(fresh(bench.plug))
        for _ in range(STEPS // 2):
            next(begun)
        state = begun.state()
        begun.close()
        return bench.steps(fresh(bench.plug), state).finish().latents.float()

    second = bench.attempt("memory", run, cure)
    if second is not None and not _close(second, first, 1e-6):
        problem = (
            "gives other images where a run is gone on with from a state of its middle (copied, saved or resampled)"
        )
        bench.found(Finding("warning", "memory", place_of(bench.plug), problem, cure))


def _batches(bench: _Bench, together: Tensor) -> None:
    """Images alone, in another order and among others are the images that they are together."""
    plug, report = bench.plug, bench.report
    cure = "What is done to an image depends on that image alone: reduce over dims (1, 2, 3), keepdim=True, and not over dim 0."
    ways: list[tuple[str, tuple[int, ...]]] = [
        ("alone", (SEEDS[0],)),
        ("in another order", (SEEDS[1], SEEDS[0])),
        ("in a larger batch", (SEEDS[2], SEEDS[0])),
    ]
    for said, seeds in ways:
        got = bench.attempt("batch", partial(bench.sample, fresh(plug), seeds), cure)
        if got is None:
            return
        if not _close(got[seeds.index(SEEDS[0])], together[0], TOLERANCE):
            problem = f"gives another image {said} than together with others"
            report.findings.append(Finding("error", "batch", place_of(plug), problem, cure))
            return


def _neutral(bench: _Bench) -> None:
    """At the scale that it calls neutral, a guidance is none."""
    plug = bench.plug
    neutral = getattr(plug, "neutral", None)
    if neutral is None or isinstance(plug, Wrapping):  # what stands around another is that one at its neutral scale
        return
    cure = "Set neutral to the scale at which it is the conditional prediction, or neutral = None if there is none."
    for kind in KINDS:
        plain = bench.sample(Guidance(), kind=kind, unwatched=True)

        def run(kind: Kind = kind) -> Tensor:
            return bench.sample(fresh(plug).with_scale(float(neutral)), kind=kind, unwatched=True)

        got = bench.attempt("neutral scale", run, cure)
        if got is None:
            return
        if not _close(got, plain, _NEUTRAL):
            problem = f"at the scale {neutral:g}, which it calls neutral, it gives other images than no guidance"
            of = "" if kind == "epsilon" else f" for a model that predicts {kind}"
            hint = "" if kind == "epsilon" else "Hand on predictions['cond'].kind, and convert by kind. "
            bench.found(Finding("error", "neutral scale", place_of(plug), problem + of, hint + cure))
            return


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and float((a - b).norm()) <= tolerance * max(float(b.norm()), 1e-12)


def _raised_in(plug: Any, error: BaseException) -> str:
    """The method of the plug that an error came through."""
    traceback, method = error.__traceback__, None
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_locals.get("self") is plug or type(frame.f_locals.get("self")) is type(plug):
            method = frame.f_code.co_name
        traceback = traceback.tb_next
    return place_of(plug, method)


def _refused_by(plug: Any, error: BaseException) -> bool:
    """Whether a plug itself has said, where it is asked whether it fits, that it does not."""
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code.co_name in ("check", "timeline") and type(frame.f_locals.get("self")) is type(plug):
            return True
        traceback = traceback.tb_next
    return False


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _picture(size: int = PIXELS, seed: int = 5) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


# -- schedulers, tasks and models: whole runs with and without them


def _check_runs(role: Role, plug: Any, report: Report, owner: Any = None) -> None:
    """What holds of any run: it is finite, the same again, alone and in another order, and draws no global noise.

    Args:
        owner: what messages name, where ``plug`` stands around it.
    """
    owner = plug if owner is None else owner
    place = place_of(owner)
    own_kind = getattr(plug, "kind", None) if role == "solver" else None  # a Solver is for one kind of prediction
    usual: Kind = own_kind if own_kind in KINDS else "epsilon"

    def found(rule: str, problem: str, cure: str, where: str = place) -> None:
        if not any(each.rule == rule for each in report.findings):
            report.findings.append(Finding("error", rule, where, problem, cure))

    def run(rule: str, seeds: Sequence[int], kind: Kind = usual, dtype: torch.dtype = torch.float32) -> Tensor | None:
        report.checked.append(rule)
        state = global_state()
        try:
            result = _whole_run(role, plug, seeds, kind, dtype)
        except ConfigError as error:
            told = str(error).splitlines()[0].rstrip(".")
            if rule == "runs":
                found(rule, told, "It has to run with what it says that it works with.")
            else:
                report.skipped.append(f"{rule}: refused ({told})")
            return None
        except Exception as error:
            cure = "See the interface in research/sampling/interfaces.py for shapes and promises."
            if not report.findings:
                found(rule, f"raises {_first(error)}", cure, _raised_in(owner, error))
            return None
        if global_state() != state:
            cure = "Draw from what you are handed: the generators of the images, run.noise.draw(stream, shape, dtype)."
            found("noise", "draws from a global generator", cure)
        if len(result.images) != len(seeds):
            cure = "Return one image for each of the batch."
            found("images", f"gives {len(result.images)} images for {len(seeds)} seeds", cure)
        if not torch.isfinite(result.latents).all():
            found(
                "half precision" if dtype != torch.float32 else "finite", "gives NaN or infinity", "Compute in float32."
            )
            return None
        return result.latents.float()

    first = run("runs", SEEDS[:2])
    report.checked += ["finite", "images", "noise"]
    if first is None or report.findings:
        return
    again = run("state", SEEDS[:2])
    if again is not None and not _close(again, first, 1e-6):
        found("state", "gives other images in a second run", "Keep nothing from run to run.")
    for said, seeds in (("alone", SEEDS[:1]), ("in another order", SEEDS[1::-1])):
        got = run("batch", seeds)
        if got is not None and not _close(got[seeds.index(SEEDS[0])], first[0], TOLERANCE):
            cure = "What is done to an image depends on its own seed and on that image alone."
            found("batch", f"gives another image {said} than together with others", cure)
    if role != "model":
        for kind in KINDS:
            if kind != "epsilon" and own_kind is None:
                run(f"prediction kind {kind}", SEEDS[:2], kind)
        run("half precision", SEEDS[:2], usual, torch.bfloat16)


def _check_linear(plug: Any, report: Report) -> None:
    """A linear solver: its numbers, its order, and whole runs."""
    place = solver_place(plug)

    def found(rule: str, problem: str, cure: str) -> None:
        report.findings.append(Finding("error", rule, place, problem, cure))

    if check_plan(plug, found, report.checked, report.skipped):
        check_order(plug, found, report.checked, report.notes)
    if not report.findings:
        _check_runs("solver", plug, report)


def _check_solver(plug: Any, report: Report) -> None:
    """A scheduler of diffusers' interface, or a `Solver`, whose step is watched in whole runs."""
    if not hasattr(plug, "timeline"):
        _check_runs("solver", plug, report)
        return
    _check_runs("solver", WatchedSolver(plug, report.findings.append), report, plug)


def _whole_run(role: Role, plug: Any, seeds: Sequence[int], kind: Kind, dtype: torch.dtype) -> SampleResult:
    model: Any = plug if role == "model" else tiny_text_model(kind, dtype)
    scheduler: Any = plug if role == "solver" else "flow_euler" if kind == "flow" else "ddim"
    if role == "task" and "text" not in plug.requires and not plug.prompts:
        model = tiny_pixel_model(kind, dtype)
    texts, guided = "text" in model.supports, "uncond" in model.supports
    label = None if model.n_classes is None else 0
    task: Any = plug if role == "task" else TextToImage(PROMPTS[0]) if texts else Unconditional(label)
    sampler = LoopSampler(model, scheduler, guidance=CFG(3.0) if guided else Guidance())
    return sampler.sample(task, seeds=list(seeds), steps=STEPS, progress=False)


# -- metrics


def _check_metric(plug: Any, report: Report) -> None:
    metric = as_metric(plug, "checked")
    needs_job = bool(getattr(metric, "needs_job", False))
    images = [_picture(32, seed) for seed in range(6)]
    prompts = [PROMPTS[k % len(PROMPTS)] for k in range(len(images))]
    place = place_of(plug, "compute")

    def found(rule: str, problem: str, cure: str) -> None:
        report.findings.append(Finding("error", rule, place, problem, cure))

    def compute(order: Sequence[int]) -> MetricResult | None:
        report.checked.append("runs")
        given, said = [images[k].copy() for k in order], [prompts[k] for k in order]
        before = [image.tobytes() for image in given], list(said)
        state = global_state()
        try:
            metric.check(n_images=len(given))
            told = {"job": _scored_job(order)} if needs_job else {}
            result = metric.compute(given, said, device="cpu", **told)
        except UserError as error:
            report.skipped.append(f"{len(order)} images: refused ({str(error).splitlines()[0].rstrip('.')})")
            return None
        except Exception as error:
            found("runs", f"raises {_first(error)} for {len(order)} images", "A metric scores any list of PIL images.")
            return None
        if ([image.tobytes() for image in given], said) != before:
            found("in place", "changes the images or prompts that it is given", "Work on copies: image.convert('RGB').")
        if global_state() != state:
            found("noise", "draws from a global generator", "Use a generator of its own with a fixed seed.")
        return result

    whole = compute(range(len(images)))
    report.checked += ["returned type", "finite", "in place", "noise", "state", "order"]
    if whole is None:
        return
    for problem, cure in _faults_of(whole, len(images)):
        found("returned type", problem, cure)
    if report.findings:
        return
    again = compute(range(len(images)))
    if again is not None and not _same(again.values, whole.values, 1e-6):
        found(
            "state",
            "gives other numbers for the same images a second time",
            "Nothing of earlier calls enters a result.",
        )
    turned = compute(range(len(images))[::-1])
    if turned is not None and not _same(turned.values, whole.values, 1e-3):
        found("order", "gives other numbers for the images in another order", "Pair each image with its own prompt.")
    compute([0])


def _scored_job(order: Sequence[int]) -> ScoredJob:
    """A job as a metric is told of it: image-to-image with a mask, each image with its own picture, sampled again by a small
    network."""
    prompts = [PROMPTS[k % len(PROMPTS)] for k in order]
    config = {
        "model": {"path": "tiny", "dtype": "float32", "device": "cpu"},
        "scheduler": {"name": "ddim", "class_name": "DDIMScheduler", "options": {}},
        "guidance": {"_target_": "research.guidance.CFG", "scale": 3.0},
        "task": {
            "_target_": "research.tasks.Inpaint",
            "image": [_picture(32, 100 + k) for k in order],
            "mask": [_picture(32, 200 + k) for k in order],
            "strength": 0.8,
        },
        "hooks": {},
        "metrics": {},
        "prompts": prompts,
        "steps": STEPS,
        "seed": 0,
        "images_per_prompt": 1,
    }

    def sample(steps: int, scheduler: str | None = None) -> Tensor:
        sampler = LoopSampler(tiny_text_model(), scheduler or "ddim", guidance=CFG(3.0))
        task: Any = TextToImage(prompts)
        return sampler.sample(task, seeds=list(order), steps=steps, progress=False).latents

    return ScoredJob(config, list(order), sample)


def _faults_of(result: MetricResult, n_images: int) -> Iterator[tuple[str, str]]:
    cure = "Return MetricResult({'name': number}, {...}) with finite floats."
    if not isinstance(result.values, dict) or not result.values:
        yield f"returns values {result.values!r}"[:100], cure
        return
    for name, value in result.values.items():
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, int | float):
            yield f"returns {name!r}: {type(value).__name__}, which is no number", cure
        elif not np.isfinite(value):
            yield f"returns {name} = {value}", cure
    scores = result.info.get("per_image")
    if scores is not None and len(scores) != n_images:
        yield (
            f"returns {len(scores)} numbers per_image for {n_images} images",
            "per_image has one number an image, in order.",
        )


def _same(a: dict[str, float], b: dict[str, float], tolerance: float) -> bool:
    return a.keys() == b.keys() and all(abs(a[k] - b[k]) <= tolerance * max(1.0, abs(b[k])) for k in b)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small networks are quickest in one thread, and their last bits the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_CHECKS: dict[Role, Callable[[Any, Report], None]] = {
    "guidance": partial(_check_in_loop, "guidance"),
    "hook": partial(_check_in_loop, "hook"),
    "metric": _check_metric,
    "solver": _check_solver,
    "linear solver": _check_linear,
    "task": partial(_check_runs, "task"),
    "model": partial(_check_runs, "model"),
    "sampler": lambda plug, report: check_sampler(plug, report.findings.append, report.checked),
}

"""What a job will cost: model evaluations, told from its config, and seconds, told from jobs that are done. Needs no torch.

The evaluations are those that a run measures (``nfe``: evaluations an image, all branches counted) for what ships here. They
are a guess where a class is somebody else's, or where the number depends on noise levels that only the libraries know.
"""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.jobs.job import Job
from research.jobs.job_images import image_count
from research.jobs.lint import strength_of
from research.jobs.own_scheduler import scheduler_class, strength_rule
from research.jobs.record import RESULT, JobResult, find_result
from research.jobs.signatures import signature
from research.strength import kept_steps

Node = Mapping[str, Any]

# evaluations of the user's steps, all but the last
_TWICE = {
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
    "FlowMatchHeunDiscreteScheduler",
}
_ONCE = {
    "CosineDPMSolverMultistepScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "IPNDMScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
    "SCMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
}
_OWN = "research.guidance."
# modifiers that ask for what the guidance inside asks for (of Renorm and Rescale: nearly always)
_EVEN = {"EpsilonScaling", "HiGS", "MimicThreshold", "Momentum", "Renorm", "Rescale", "TSR", "Threshold"}
# guidances that at scale 0 are the one that they add to, or none
_ADDING = {
    "RectifiedCFGPlusPlus",
    "PAG",
    "PLADIS",
    "SAG",
    "SEG",
    "SLG",
    "SWG",
    "TPG",
    "DPS",
    "LossGuidance",
    "ClassifierGuidance",
}
_MOST_RECORDS = 300  # read for the timings, the latest first: they tell the time of thousands
_TIMED_BY = (
    "path",
    "config",
    "dtype",
    "device",
    "compile",
    "channels_last",
    "quantize",
    "offload",
)  # keys of a model that its timings depend on


@dataclass(frozen=True)
class Estimate:
    """Evaluations of the model an image; ``exact`` where the rules cover all that the job does."""

    nfe: int
    exact: bool = True

    def __str__(self) -> str:
        return f"{'' if self.exact else '~'}{self.nfe}"


def estimate(config: Mapping[str, Any]) -> Estimate:
    """The evaluations of a validated config."""
    surplus = _surplus(config)
    config = {**config, "steps": config["steps"] + surplus}
    stages, exact = _stages(config, surplus)
    walk, walked = _revisited(config, stages)
    branches = _Guided(config)
    each = [branches.at(step) for step in walk]
    total, counted = _searched(config, each)
    return Estimate(total, exact and walked and branches.exact and counted)


def _searched(config: Mapping[str, Any], each: Sequence[int]) -> tuple[int, bool]:
    """Evaluations of all candidates of an image, of those that one has at each of its stages, and whether that is certain."""
    node, one = config.get("sampler") or {}, sum(each)
    if "_target_" not in node:
        return one, True
    given, name = _arguments(node), _class(node)
    if not str(node["_target_"]).startswith("research.samplers."):
        return one, False
    if name == "BestOfN":
        return given["n"] * one, True
    if name == "ZeroOrder":
        return (1 + given["neighbours"] * given["iterations"]) * one, True
    if name == "NoiseOptimisation":
        return (1 + given["iterations"]) * one, True
    if name in ("FKSteering", "TwistedSMC"):
        return given["particles"] * one, True
    if name == "SearchOverPaths":
        back, stages = given["back"], len(each)
        place = min(max(round(given["start"] * stages), back), stages - 1)
        total = given["paths"] * sum(each[:place])
        while place < stages:
            end = min(place + given["forth"], stages)
            total += given["paths"] * given["branches"] * sum(each[max(place - back, 0) : end])
            place = end
        return total, not config["guidance"].get("modifiers")
    return one, name == "ParticleGuidance"


_NATIVE = "research.solvers.native."


def _planned(class_name: str, options: Mapping[str, Any], run: Sequence[int], steps: int) -> tuple[list[int], bool]:
    """The user's step of each evaluation of a native solver: its plan over made-up levels, which says how many a step has.

    It is certain where it is the same over levels down to the least that is trained and over levels that end a step above it
    (`Restart` goes back up from a level, and the step that comes to it is another).

    Args:
        run: the steps that are run, the last ones of ``steps``.
    """
    from research.solvers.levels import Levels, TrainedLevels

    if not run:
        return [], True
    module, _, name = class_name.rpartition(".")
    solver = getattr(importlib.import_module(module), name)(**options)
    trained = TrainedLevels(tuple(0.03 * 1.0063**i for i in range(1000)), 1000)
    found = []
    for ways in (max(steps - 1, 1), steps):
        ratio = (trained.sigma_min / trained.sigma_max) ** (1 / ways)
        grid = [trained.at_sigma(trained.sigma_max * ratio**i) for i in range(steps)]
        levels = Levels((*grid, trained.clean()), trained, n_steps=steps)
        found.append([run[stage.step] for stage in solver.plan(levels.last(len(run)))])
    return found[0], found[0] == found[1]


def _surplus(config: Mapping[str, Any]) -> int:
    """The step too many that diffusers makes with trailing spacing at some counts, and that is made with parity alone."""
    options, steps = config["scheduler"]["options"], config["steps"]
    if not config["runtime"].get("parity", False) or options.get("timestep_spacing") != "trailing":
        return 0
    train = options.get("num_train_timesteps", 1000)
    return int(math.ceil(train / (train / steps)) > steps)


def _stages(config: Mapping[str, Any], surplus: int) -> tuple[list[int], bool]:
    """The user's step of each stage that is run, and whether that is certain; ``surplus`` of the steps nobody asked for."""
    steps, task, options = config["steps"], config["task"], config["scheduler"]["options"]
    rule = strength_rule(config) or {"parity": True}
    parity, strength = rule["parity"], strength_of(task)
    kept = steps if strength is None else kept_steps(steps - surplus, strength, **rule)
    kept += surplus if kept and strength is not None else 0
    class_name = scheduler_class(config)
    name = class_name.rpartition(".")[2]
    if _class(task) == "Inversion":
        return list(range(steps)) * (1 if task.get("reconstruct") is False else 2), True
    run = list(range(steps - kept, steps))
    if (end := task.get("denoising_end")) is not None:  # by timesteps, of which the libraries know
        return [step for step in run if step < end * steps], False
    if class_name.startswith(_NATIVE):
        return _planned(class_name, options, run, steps)
    if name in _TWICE:
        twice = [step for step in run for _ in range(2)]
        # a step to zero takes one; a grid that ends at a level above it has two in its last step as well
        ends_clean = (config.get("sigmas") or {}).get("end", "zero") == "zero"
        return twice[:-1] if ends_clean else twice, ends_clean and not (parity and kept < steps)
    if name == "PNDMScheduler" and kept:
        if not options.get("skip_prk_steps", False):
            return [run[0]] * 9 + run, False
        # the first step of the full schedule is made of two evaluations; a slice begins behind it, mended to do the same
        return [run[0], *run], True
    return run, name in _ONCE and not (parity and kept < steps)


def _revisited(config: Mapping[str, Any], stages: list[int]) -> tuple[list[int], bool]:
    """The stages in the order in which hooks walk them."""
    n, found, exact = config["steps"], list(stages), True
    for hook in config["hooks"].values():
        settings = _arguments(hook)
        if _class(hook) == "RePaint":
            length, times = settings["jump_length"], settings["jump_n_sample"]
            jumps = max(0, math.ceil((len(stages) - length) / length)) * (times - 1) if length else 0
            found = found + stages[:length] * jumps
            exact = exact and _even_guidance(config)
        elif _class(hook) == "Restart":
            if (window := settings.get("steps")) is not None:
                inside = [step for step in stages if window[0] <= step / n < window[1]]
            else:  # noise levels, of which the libraries know: most of them lie in the middle
                inside, exact = stages[len(stages) // 2 :], False
            found = found + inside * settings["times"]
        elif not str(hook.get("_target_", "")).startswith("research.hooks."):
            pass  # a hook of somebody's own evaluates the model through the guidance, as the loop does
    return found, exact


def _even_guidance(config: Mapping[str, Any]) -> bool:
    return not config["guidance"].get("modifiers")


# -- guidance


class _Guided:
    """Evaluations of a stage, by the user's step it belongs to."""

    def __init__(self, config: Mapping[str, Any]):
        self.exact = True
        self._n = config["steps"]
        self._parity = config["runtime"].get("parity", False)
        node = dict(config["guidance"])
        modifiers = list((node.pop("modifiers", None) or {}).values())
        scheduled = [m for m in modifiers if _class(m) == "Schedule"]
        ends = [end for m in scheduled for end in (m.get("start"), m.get("end"), *(m.get("values") or ()))]
        self._scheduled_from_1 = any(end not in (None, 1) for end in ends)
        self._at = self._modified(node, modifiers)
        self._known: dict[int, int] = {}

    def at(self, step: int) -> int:
        if step not in self._known:
            self._known[step] = self._at(step, None)
        return self._known[step]

    def _modified(self, node: Node, modifiers: Sequence[Node]) -> Callable[[int, float | None], int]:
        """Evaluations at a step and a scale (None: the guidance's own), the last modifier outermost."""
        if not modifiers:
            return lambda step, scale: self._branches(node, scale, step)
        *inner, modifier = modifiers
        inside, settings = self._modified(node, inner), _arguments(modifier)
        kind = _class(modifier)
        if kind == "Interval":
            return self._interval(node, settings, inside)
        if kind == "Schedule":
            return lambda step, scale: inside(step, self._scheduled(node, settings, step))
        if kind not in _EVEN:
            self.exact = False
        return inside

    def _interval(
        self, node: Node, settings: Node, inside: Callable[[int, float | None], int]
    ) -> Callable[[int, float | None], int]:
        window, base = settings.get("steps"), node.get("base")
        added_to: Node | None = base if settings.get("outside") == "base" and base else None
        if window is None:  # by noise levels, of which the libraries know
            outside = self._branches(added_to, None, self._n) if added_to else 1
            self.exact = self.exact and inside(self._n - 1, None) == outside
            window = (0.25, 0.75)
        low, high = window

        def at(step: int, scale: float | None) -> int:
            if low <= step / self._n < high:
                return inside(step, scale)
            return self._branches(added_to, None, step) if added_to else 1

        return at

    def _scheduled(self, node: Node, settings: Node, step: int) -> float:
        own = _scale(node)
        neutral = {0.0: 0.0, 1.0: 1.0}.get(_neutral(node))
        end = own if settings.get("end") is None else float(settings["end"])
        start = settings.get("start")
        if start is None:
            start = end if settings.get("kind") == "constant" or neutral is None else neutral
        part = step / (self._n - 1) if self._n > 1 else 1.0
        part = 1 - part if settings.get("reverse") else part
        if values := settings.get("values"):
            place = part * (len(values) - 1)
            before = max(0, min(int(place), len(values) - 2))
            after = min(before + 1, len(values) - 1)
            return float(values[before] + (place - before) * (values[after] - values[before]))
        shape = {
            "constant": 1.0,
            "cosine": (1 - math.cos(math.pi * part)) / 2,
            "power": part ** float(settings.get("power") or 2.0),
            "power_cosine": (1 - math.cos(math.pi * part ** float(settings.get("power") or 2.0))) / 2,
            "triangle": 1 - abs(2 * part - 1),
        }.get(str(settings.get("kind")), part)
        return float(start + (end - start) * shape)

    def _stands_still(self, node: Node, step: int) -> bool:
        """Whether a guidance, or what it adds to, has a step stand still (zero-init)."""
        if _class(node) == "CFGZero":
            settings = _arguments(node)
            return (_scale(node) != 1 or self._scheduled_from_1) and step < settings.get("zero_steps", 0)
        base = node.get("base")
        return base is not None and self._stands_still(base, step)

    def _branches(self, node: Node, scale: float | None, step: int) -> int:
        """Predictions a stage of a step that a guidance asks for at a scale."""
        if self._stands_still(node, step):
            return 1
        name, own = _class(node), _scale(node) if scale is None else scale
        if not str(node["_target_"]).startswith(_OWN):
            self.exact = False
            return 1 if own == 1 else 2
        if name in ("NoGuidance", "Guidance"):
            return 1
        if name == "CharacteristicGuidance" and own != 1:  # as many as its search takes, which is seen on the way
            self.exact = False
            done = step < float(_arguments(node)["until"]) * self._n
            return 2 + 2 * min(int(_arguments(node)["iterations"]) - 1, 10) * done
        if name == "CFG" and self._parity and own < 1:
            return 1
        if name in ("CFG", "ICG", "TSG"):
            return 1 if own in (0, 1) else 2
        if name == "RectifiedCFGPlusPlus":
            if own and step == self._n - 1:  # two at the last stage, which may be one of several of its step
                return 2
            return 3 if own else 1
        if name == "CFGPlusPlus":
            return 1 if own == 0 else 2
        if name in ("Composable", "PerpNeg"):
            return 1 if own == 0 else 2 + self._further(node)
        if name == "PAG" and _arguments(node).get("adaptive"):  # by times, of which the libraries know
            self.exact = False
        if name in ("Autoguidance", "PAG", "SAG", "SEG", "SLG", "SWG", "TPG"):
            base = node.get("base")
            further = int(_arguments(node)["windows"]) ** 2 if name == "SWG" else 1
            return (self._branches(base, None, step) if base else 1) + further * (own != _neutral(node))
        if name in ("DPS", "LossGuidance", "ClassifierGuidance", "NAG", "PLADIS"):
            base = node.get("base")
            return self._branches(base, None, step) if base else 1
        return 1 if own == 1 else 2

    def _further(self, node: Node) -> int:
        prompts, weights = node.get("prompts") or [], node.get("weights")
        weights = weights if isinstance(weights, list) else [weights] * len(prompts)
        return sum(1 for _, weight in zip(prompts, weights, strict=False) if weight != 0)


def _neutral(node: Node) -> float:
    if _class(node) in _ADDING:
        return 0.0
    return math.nan if _class(node) in ("CFGPlusPlus", "Composable", "PerpNeg") else 1.0


def _scale(node: Node) -> float:
    found = _arguments(node).get("scale", 1.0)
    return float(found) if isinstance(found, int | float) else math.nan


# -- settings


def _class(node: Node) -> str:
    return str(node.get("_target_", "")).rpartition(".")[2]


def _arguments(node: Node) -> dict[str, Any]:
    """A node's settings with the defaults of its class."""
    found = signature(str(node["_target_"])) if "_target_" in node else None
    return {**(found.arguments if found else {}), **node}


# -- seconds


class Times:
    """Seconds an evaluation, and seconds an image besides, of each model, task and size that jobs have been done with.

    Args:
        jobs: whose output folders are looked at: first those of their own sweeps, then the other sweeps beside them.
    """

    def __init__(self, jobs: Sequence[Job]):
        known: dict[str, list[tuple[float, float]]] = {}
        for result in _finished_results(jobs):
            found = _measured(result)
            if found is not None:
                known.setdefault(_kind(result.config), []).append(found)
        self._known = {
            kind: (statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs))
            for kind, pairs in known.items()
        }

    def of(self, job: Job) -> float | None:
        """Seconds of a job, the loading of its model aside; None where nothing like it has been done."""
        found = self._known.get(_kind(job.config))
        if found is None:
            return None
        return image_count(job.config) * (found[0] * estimate(job.config).nfe + found[1])


def _kind(config: Mapping[str, Any]) -> str:
    model, task = config["model"], config["task"]
    size = [task.get("height"), task.get("width")]
    return repr([[model.get(key) for key in _TIMED_BY], task.get("_target_"), size, sorted(config["metrics"])])


def _measured(result: JobResult) -> tuple[float, float] | None:
    timings, images, nfe = result.timings, result.n_images, result.nfe
    if not images or not nfe or not {"total", "denoise", "load"} <= timings.keys():
        return None
    rest = timings["total"] - timings["denoise"] - timings["load"]
    return timings["denoise"] / (nfe * images), max(rest, 0.0) / images


def _finished_results(jobs: Iterable[Job]) -> Iterable[JobResult]:
    own = list(dict.fromkeys(job.folder.path.parent for job in jobs))
    left = _MOST_RECORDS
    for places in ([(sweep, "*") for sweep in own], [(root, "*/*") for root in dict.fromkeys(s.parent for s in own)]):
        files = [file for place, pattern in places for file in place.glob(f"{pattern}/{RESULT}")]
        stamped = sorted(((_stamp(file), file) for file in files), reverse=True)
        for _, file in stamped[:left]:
            result = find_result(file.parent)
            left -= 1
            if result is not None and result.done and result.settings is not None:
                yield result


def _stamp(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0

"""Settings that make other images than they did under the ids before: their jobs have other ids now.

With ``parity`` a scheduler does what diffusers' class does, and so what it did. A model of the hub is judged by its task, as ids
do not depend on what is in a cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from research.jobs.own_scheduler import model_schedule, scheduler_class
from research.jobs.signatures import signature

# classes that make other images of the same settings: raised when that happens again
OF_CLASSES = {"CFGZero": 2, "FDG": 2, "RePaint": 2, "Rescale": 2}
_OBSERVERS = {"Record", "Preview", "NaNGuard"}  # hooks that change nothing


def of_levels(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler has other noise levels: Beta quantiles, and counts for which trailing spacing made a step too many."""
    options, steps = config["scheduler"].get("options") or {}, config["steps"]
    if config["runtime"].get("parity", False):
        return False
    train = options.get("num_train_timesteps", 1000)
    trailing = options.get("timestep_spacing") == "trailing" and not options.get("use_karras_sigmas")
    return bool(options.get("use_beta_sigmas")) or (trailing and math.ceil(train / (train / steps)) > steps)


def of_round_trip(config: Mapping[str, Any]) -> bool:
    """Whether a job is an inversion by a guidance that means another thing on its two ways."""
    guidance = config["guidance"]
    by = _class(guidance)
    return _class(config["task"]) == "Inversion" and (by == "CFGPlusPlus" or bool(guidance.get("modifiers")))


def of_runs(config: Mapping[str, Any]) -> list[str]:
    """What else a job does otherwise, by name, sorted; none for most."""
    return sorted(set(_of_runs(config)))


def _of_runs(config: Mapping[str, Any]) -> Iterator[str]:
    hooks = [node for node in (config.get("hooks") or {}).values() if isinstance(node, Mapping)]
    classes = {_class(node) for node in hooks}
    restarts = [node for node in hooks if _class(node) == "Restart"]
    if _class(config["task"]) == "Inversion":
        if classes - _OBSERVERS:
            yield "inversion: each way counts its own steps"
        if (model_schedule(config) or {}).get("prediction_type") == "sample":
            yield "inversion: x0 is turned into noise at the level that the model is told"
    if restarts and classes & {"MaskComposite", "Differential"}:
        yield "restart: the known part is noised afresh"
    if restarts and _class(config["guidance"]) == "APG":
        yield "restart: momentum begins anew"
    modifiers = [node for node in (config["guidance"].get("modifiers") or {}).values() if isinstance(node, Mapping)]
    about_sigma = restarts + [node for node in modifiers if _class(node) == "Interval"]
    if any(node.get("sigma") is not None for node in about_sigma) and _is_flow(model_schedule(config) or {}):
        yield "sigma: flow times"
    if not config["runtime"].get("parity", False):
        yield from _of_solver(config, classes)


def _of_solver(config: Mapping[str, Any], hooks: set[str]) -> Iterator[str]:
    """Where the native solver makes another picture than the class whose place it takes."""
    scheduler = config["scheduler"]
    cls, options = scheduler_class(config), scheduler.get("options") or {}
    if options.get("s_churn"):
        yield "churn: the model is asked at the raised level"
    if cls == "UniPCMultistepScheduler" and hooks - _OBSERVERS:
        yield "unipc: the corrector keeps what hooks changed"
    if cls == "DPMSolverSinglestepScheduler" and _strength(config["task"]) != 1.0:
        yield "singlestep: groups begin with the slice"
    if "." in cls or cls == "DDPMScheduler":
        return
    schedule = model_schedule(config)
    settings = {**(schedule or {}), **options}
    if cls == "PNDMScheduler" and (schedule is None or settings.get("prediction_type", "epsilon") != "epsilon"):
        yield "pndm: noises are averaged"
    if settings.get("beta_schedule") == "squaredcos_cap_v2":  # begins at a sigma of 20 000
        yield "cosine betas: levels in double precision"
    pixels = _class(config["task"]) == "Unconditional"  # of a model of the hub
    clips = pixels if schedule is None else settings.get("clip_sample")
    if clips and cls not in ("HeunDiscreteScheduler", "LCMScheduler") and not options.get("use_clipped_model_output"):
        yield "clipping: of every solver"


def _class(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_", "")).rpartition(".")[2]


def _is_flow(schedule: Mapping[str, Any]) -> bool:
    return "FlowMatch" in str(schedule.get("_class_name", "")) or schedule.get("prediction_type") == "flow_prediction"


def _strength(task: Mapping[str, Any]) -> Any:
    found = task.get("strength")
    if found is None and (of_class := signature(str(task.get("_target_")))) is not None:
        found = of_class.arguments.get("strength", 1.0)
    return 1.0 if found is None else found

"""What a job names is looked at before the first job runs: classes and their arguments, the model's files, and whether all fit.

`check_plug_configs`, `check_metrics` and `check_model` look at one config and import no torch. `check_fit` builds the plugs of
all jobs of a plan and checks them against one another and against the model's outline, before any weights are read.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.checks import check_number
from research.errors import ConfigError, ModelError, UserError, nearest, one_line
from research.jobs import job_images, own_model, process_cache, targets
from research.jobs.build import COMPOSED, Origin, build, guidance_of, sampler_of, sigmas_of
from research.jobs.plan_cache import PlanCache
from research.jobs.schema import LOOP, MODEL_IDENTITY, MODEL_LEVELS
from research.metrics.base import as_metric
from research.metrics.score import check_metric
from research.models.geometry import factor_and_patch, wrong_side
from research.models.inspect.families import FAMILIES, PIPELINES
from research.models.inspect.find_model import (
    config_directory,
    find_configured,
    find_pipeline,
    pipeline_class,
    read_index,
)
from research.models.inspect.fit import channel_problems
from research.models.inspect.fit_file import check_small_files, check_whole
from research.models.inspect.hub import local_directory
from research.models.inspect.kinds import check_file
from research.models.inspect.parts import WEIGHTED, choose_variants, folder_of, wanted_parts
from research.models.inspect.weights import check_safetensors, weight_files
from research.models.lora_files import Lora, read_loras
from research.models.loras import check_converted, check_loras
from research.models.memory import Memory

if TYPE_CHECKING:
    from research.jobs.job import Job
    from research.solvers.build import SolverFactory

_log = logging.getLogger(__name__)
_SAID = {"in_channels", "out_channels", "cross_attention_dim"}


# -- the classes of one config, without torch


def check_plug_configs(config: dict[str, Any], cache: PlanCache) -> None:
    """Check that the plugs of a job are classes that take what they are given; empty sections become empty mappings.

    Raises:
        ConfigError: one line with the key, what was found and what is accepted.
    """
    cache.get("scheduler", config["scheduler"], lambda: targets.check_scheduler(config["scheduler"]))
    config["sigmas"] = dict(config.get("sigmas") or MODEL_LEVELS)
    cache.get("sigmas", [config["sigmas"], config["steps"]], lambda: _check_sigmas(config["sigmas"], config["steps"]))
    for key in ("guidance", "task"):
        check_mapping(key, config[key])
        if "_target_" not in config[key]:
            raise ConfigError(f"{key}._target_: is missing; accepted is a class by its dotted name, or {key}=CHOICE.")
    config["sampler"] = dict(config.get("sampler") or LOOP)
    cache.get("sampler", config["sampler"], lambda: _check_sampler(config["sampler"]))
    guidance = dict(config["guidance"])
    modifiers = guidance.pop("modifiers", None) or {}
    config["guidance"] = {**guidance, "modifiers": modifiers} if modifiers else guidance
    cache.get("guidance", config["guidance"], lambda: _check_guidance(guidance, modifiers))
    filled_in = frozenset({"prompt"})
    cache.get("task", config["task"], lambda: targets.check(config["task"], "task", filled_in=filled_in))
    for key in ("hooks", "metrics"):
        config[key] = config.get(key) or {}
        cache.get(key, config[key], partial(_check_named, key, config[key]))
    config["tracker"] = config.get("tracker") or {}
    check_mapping("tracker", config["tracker"])
    if config["tracker"] and "_target_" not in config["tracker"]:
        raise ConfigError(f"tracker.{next(iter(config['tracker']))}: unknown key; with tracker=none it has none.")
    cache.get("tracker class", config["tracker"], lambda: targets.check(config["tracker"], "tracker"))


def _check_sigmas(sigmas: Any, steps: int) -> None:
    check_mapping("sigmas", sigmas)
    node = {key: value for key, value in sigmas.items() if key != "name"}
    if "_target_" not in node:
        if node or sigmas.get("name") != MODEL_LEVELS["name"]:
            first = next(iter(node), "name")
            raise ConfigError(
                f"sigmas.{first}: found without sigmas._target_; accepted is a grid, sigmas=CHOICE, or sigmas=model, which has "
                "no options."
            )
        return
    targets.check(node, "sigmas")
    own = getattr(build(node, "sigmas"), "steps", None)  # constructors are cheap by contract
    if isinstance(own, int) and own != steps:
        raise ConfigError(f"steps: found {steps} with sigmas of {own} steps; accepted is {own}, or another grid.")


def _check_sampler(sampler: Any) -> None:
    check_mapping("sampler", sampler)
    node = {key: value for key, value in sampler.items() if key != "name"}
    if "_target_" not in node:
        if node or sampler.get("name") != LOOP["name"]:
            first = next(iter(node), "name")
            raise ConfigError(
                f"sampler.{first}: found without sampler._target_; accepted is a sampler, sampler=CHOICE, or sampler=loop, "
                "which has no options."
            )
        return
    targets.check(node, "sampler", filled_in=frozenset({"sampler"}))
    if targets.needs(node, "score") and node.get("score") is None:
        raise ConfigError(
            "sampler.score: must be given; accepted is a metric with a value an image, sampler.score=clip_score."
        )


def _check_guidance(guidance: Mapping[str, Any], modifiers: Any) -> None:
    targets.check(guidance, "guidance")
    if modifiers:
        _check_entries("guidance.modifiers", modifiers)
        for name, node in modifiers.items():
            targets.check(node, f"guidance.modifiers.{name}", filled_in=frozenset({"guidance"}))
    whole = {**guidance, "modifiers": modifiers}
    for where, node in targets.nodes(whole, "guidance"):
        _check_scale(f"{where}.scale", node.get("scale", 1.0))


def _check_named(key: str, entries: Any) -> None:
    _check_entries(key, entries)
    targets.check(entries, key)


def _check_entries(key: str, entries: Any) -> None:
    """Check that a section holds classes by names of their own."""
    check_mapping(key, entries)
    if "_target_" in entries:
        raise ConfigError(
            f"{key}._target_: found without a name; accepted is one level more in the YAML file, NAME: {{_target_: ...}}."
        )
    for name, node in entries.items():
        if not isinstance(node, dict) or "_target_" not in node:
            raise ConfigError(
                f"{key}.{name}: unknown key.{nearest(name, entries)} Accepted are entries with a _target_."
            )


def _check_scale(key: str, value: Any) -> None:
    if isinstance(value, dict):  # a schedule of one's own
        return
    check_number(key, value)


def check_metrics(
    metrics: Mapping[str, Any], n_images: int, config: Mapping[str, Any] | None = None, origin: Origin = COMPOSED
) -> None:
    """Check that each metric can be built, and can work with so many images, and with such a job if one is given."""
    for name, node in metrics.items():
        metric = build(node, f"metrics.{name}", origin)  # constructors are cheap by contract
        try:
            check_metric(as_metric(metric, name), n_images, config)
        except UserError:
            raise
        except Exception as error:  # of settings that a class did not expect
            raise ConfigError(f"metrics.{name}: {node.get('_target_')} cannot be checked: {one_line(error)}") from error


def check_mapping(key: str, value: Any) -> None:
    """Check that a section has keys."""
    if not isinstance(value, dict):
        raise ConfigError(
            f"{key}: found {value!r}; accepted is a choice of the group {key} or keys inside it, {key}.NAME=VALUE."
        )


# -- the files of its model, without torch


def check_model(config: Mapping[str, Any]) -> None:
    """Check that the model is there and whole, and that steps and size can work with it. Hub models are checked when they load.

    Raises:
        ModelError: no such model, or a broken one.
        ConfigError: more steps than the scheduler has timesteps; a LoRA of another model.
    """
    if own_model.is_own(config["model"]):
        own_model.check(config["model"])
        return
    model = config["model"]
    check_memory(model)
    found, given = find_configured(model), model.get("config")
    directory: Path | None
    if given is not None and found.file is None:
        raise ConfigError(
            f"model.config: found {given!r} with {model['path']}, which is no single file; accepted is null there."
        )
    loras = _loras_of(config)
    if found.file is not None:
        kind = check_file(found.file, allow_pickle=model["allow_pickle"])
        if given is None:
            check_whole(found.file, kind)
            return
        directory = config_directory(given)
        check_small_files(found.file, kind, directory)
    else:
        directory = local_directory(found, offline=model.get("offline"), variant=model.get("variant"))
        if directory is None:
            return
        _check_files(directory, model["allow_pickle"], model.get("variant"))
        check_loras(loras, directory, model["path"])
    known = _read_json(folder_of(directory, "scheduler") / "scheduler_config.json").get("num_train_timesteps", 1000)
    timesteps = config["scheduler"]["options"].get("num_train_timesteps", known)
    if isinstance(timesteps, int) and config["steps"] > timesteps:
        raise ConfigError(
            f"steps: found {config['steps']}; accepted is a whole number from 1 to {timesteps}, the timesteps of the scheduler."
        )
    _check_size(directory, config["task"])


def check_memory(model: Mapping[str, Any], device: str | None = None) -> None:
    """Check how a job's model is to use memory.

    Args:
        device: on what kind of device it runs, where the config does not say it.

    Raises:
        ConfigError: settings that do not go together, or a package that is not installed.
    """
    named = str(model.get("device") or "auto")
    known = device if named == "auto" else named.partition(":")[0]
    told = {field.name: model[field.name] for field in fields(Memory) if model.get(field.name) is not None}
    Memory(**told).check(known, compile=bool(model.get("compile")), loras=bool(model.get("loras")))


def _loras_of(config: Mapping[str, Any]) -> tuple[Lora, ...]:
    model = config["model"]
    return read_loras(model.get("loras"), offline=model.get("offline"))


@lru_cache(maxsize=64)
def _check_files(directory: Path, allow_pickle: bool, variant: str | None) -> None:
    pipeline_class(directory)
    index = read_index(directory)
    parts = [
        name
        for name in wanted_parts(index)
        if name in WEIGHTED and isinstance(index.get(name), list) and index[name][0] is not None
    ]
    chosen = choose_variants(directory, parts, variant)
    for part in parts:
        folder = folder_of(directory, part)
        files, safe = weight_files(folder, allow_pickle=allow_pickle, variant=chosen[part], part=part)
        for file in files if safe else ():
            check_safetensors(file)
    configs = {part: _read_json(folder_of(directory, part) / "config.json") for part in parts}
    if (
        "transformer" in configs or configs.get("unet", {}).keys() >= _SAID
    ):  # what is left out needs diffusers to be known
        for problem in channel_problems(configs, directory):
            raise ModelError(problem)


def _check_size(directory: Path, task: Mapping[str, Any]) -> None:
    family = PIPELINES.get(str(read_index(directory)["_class_name"]))
    if family is None or "vae" not in FAMILIES[family].parts:
        return
    network, vae = (
        _read_json(folder_of(directory, part) / "config.json") for part in (FAMILIES[family].network, "vae")
    )
    factor, patch = factor_and_patch(family, network, vae)
    for key in ("height", "width"):
        pixels = task.get(key)
        if pixels is None:
            continue
        if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 1 or pixels % (factor * patch):
            raise wrong_side(key, pixels, factor, patch)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path: {file} cannot be read as JSON: {error}") from error
    return content if isinstance(content, dict) else {}


# -- plugs against one another and the model


def check_fit(jobs: Sequence[Job], *, here: bool = True) -> list[str]:
    """Build guidance, hooks, scheduler and task of each job that will run, and check them against the model's outline.

    Models that are not on this disk, and single files, are looked at when they load.

    Args:
        here: whether the jobs run on this machine, whose GPU is what they have.

    Returns:
        What the tasks have to say of how they read their pictures; a run says it too.

    Raises:
        UserError: a task that its model cannot do, a scheduler that a task or guidance cannot work with, a picture that does not
            fit; with the job's overrides if there are several jobs.
    """
    waiting = [job for job in jobs if not (job.config["resume"] and job.folder.finished())]
    if not waiting:
        return []
    process_cache.libraries()
    _solvers.cache_clear()  # a class of the user's own may have been edited since
    seen: set[str] = set()
    looked_at: set[type] = set()
    said: dict[str, None] = {}
    for job in waiting:
        key = _fit_key(job)
        if key in seen:
            continue
        seen.add(key)
        try:
            try:
                if here and job.config["model"].get("offload", "none") != "none":
                    check_memory(job.config["model"], _device_here())
                notes = _check_job(job, looked_at)
            except UserError:
                raise
            except Exception as error:  # a plug of somebody else's, which is no reason to lose the jobs without it
                raise ConfigError(_plug_failed(error)) from error
        except UserError as error:
            if len(jobs) == 1:
                raise
            raise type(error)(f"{str(error).rstrip('.')} (in the job {' '.join(job.overrides)}).") from error
        said |= dict.fromkeys(notes)
    return list(said)


def _device_here() -> str:
    """What "auto" is on this machine."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _plug_failed(error: Exception) -> str:
    """Which method of a user's plug failed while it was looked at, and how."""
    frames = traceback.extract_tb(error.__traceback__)
    project = Path(__file__).parents[1]
    theirs = next((f for f in reversed(frames) if not Path(f.filename).is_relative_to(project)), frames[-1])
    return (
        f"a plug failed while it was checked, in {theirs.name} ({theirs.filename}:{theirs.lineno}): {one_line(error)}"
    )


def _fit_key(job: Job) -> str:
    """What decides whether plugs fit: jobs that agree in it are looked at once."""
    keys = (
        "model",
        "scheduler",
        "sigmas",
        "guidance",
        "sampler",
        "task",
        "hooks",
        "prompts",
        "images_per_prompt",
        "steps",
        "runtime",
    )
    return json.dumps([job.config[key] for key in keys], sort_keys=True, default=str)


def _check_job(job: Job, looked_at: set[type]) -> Sequence[str]:
    """Check a job; returns what its task has to say of how it reads its pictures."""
    import torch

    from research.models.summary import check_choices
    from research.sampling import check_claims, check_negative_prompt, check_offers, check_plugs
    from research.tasks import ImageToImage

    config = job.config
    guidance = guidance_of(config)
    hooks = [build(node, f"hooks.{name}") for name, node in config["hooks"].items()]
    task = build(config["task"], "task", **job_images.task_arguments(config))
    sampler = sampler_of(config)
    if job.sources:
        named = {f"hooks.{name}": hook for name, hook in zip(config["hooks"], hooks, strict=True)}
        if sampler is not None:
            named["sampler"] = sampler
        named |= {f"metrics.{name}": build(node, f"metrics.{name}") for name, node in config["metrics"].items()}
        check_own_plugs({"guidance": guidance, "task": task, **named}, looked_at)
    own = own_model.is_own(config["model"])
    model = own_model.built(config["model"]) if own else _outline(_place(config["model"]))
    if model is None:
        return ()
    check_choices(model, *(config["model"].get(key) for key in MODEL_IDENTITY))
    if not own and config["model"].get("loras"):
        chosen = config["model"]
        directory = local_directory(
            find_configured(chosen), offline=chosen.get("offline"), variant=chosen.get("variant")
        )
        if directory is not None:
            check_converted(_loras_of(config), directory, chosen["path"])
    asked = json.dumps([config["scheduler"], config["sigmas"]])
    parity = config["runtime"]["parity"]
    factory = _own_solvers(asked, model, parity) if own else _solvers(asked, _place(config["model"]), parity)
    if factory.sigmas is not None:
        factory.levels(config["steps"])  # whether the model knows them
    solver = factory()
    check_plugs(guidance, hooks, model, solver)
    check_offers("task", task, model, solver)
    check_negative_prompt(task, guidance, model)
    _say_guided_twice(guidance, task, model)
    task.check(model, job_images.image_count(config))
    check_claims(hooks, task.claims(model), f"the task {task.name}")
    if sampler is not None:
        sampler.check(model, task, solver, guidance, hooks)
        asked_for, together = config["batch_size"], min(sampler.images_together, job_images.image_count(config))
        if isinstance(asked_for, int) and asked_for < together:
            raise ConfigError(
                f"batch_size: found {asked_for}; the sampler makes {together} images together, accepted is as many or more."
            )
    walked = task.solver(solver)
    if parity:  # pipelines count steps in ways of their own, and some counts they cannot make
        if isinstance(task, ImageToImage):
            task.count_as(model)
        task.timeline(walked, config["steps"], torch.device("cpu"))
    return tuple(getattr(task, "notes", ()))


def _say_guided_twice(guidance: Any, task: Any, model: Any) -> None:
    """A model that is told a guidance scale is sampled without CFG by its pipeline; a config's usual one is easy to overlook."""
    told = getattr(model, "distilled_guidance", None)
    if told is not None and "uncond" in guidance.requires and not getattr(task, "negative_prompt", None):
        _warn_once(
            f"guidance: found {type(guidance).__name__} with {model.name}, which has its guidance distilled into it (it is told "
            f"{told:g}): its pipeline samples it without, as guidance=none does, at half the evaluations."
        )


@lru_cache(maxsize=256)
def _warn_once(message: str) -> None:
    _log.warning("warning: %s", message)


def check_own_plugs(plugs: Mapping[str, Any], looked_at: set[type]) -> None:
    """Hold the user's own classes against the rules of their interfaces, as far as these can be looked up without running them.
    What is doubtful goes to the log; ``research-check`` looks at the rest.

    Args:
        plugs: by their keys in the config.
        looked_at: classes that were held against them before; those of ``plugs`` are added.

    Raises:
        ConfigError: a class is certain not to do what it is meant to.
    """
    from research.testing.plug_rules import is_own, static_findings

    for key, plug in _with_inner(plugs):
        if type(plug) in looked_at or not is_own(type(plug)):
            continue
        looked_at.add(type(plug))
        for finding in static_findings(plug):
            line = f"{key}: {finding.place}: {finding.problem}. {finding.cure}"
            if finding.severity == "error":
                raise ConfigError(line)
            _log.warning("warning: %s", line)


def _with_inner(plugs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Plugs, and the guidances inside of them."""
    left = list(plugs.items())
    while left:
        key, plug = left.pop(0)
        yield key, plug
        if key == "guidance":
            left += [(key, inner) for inner in getattr(plug, "__dict__", {}).values() if hasattr(inner, "combine")]


def _place(model: Mapping[str, Any]) -> str:
    """What decides which model is loaded, as a key."""
    names = ("path", "config", "revision", "subfolder", "offline", "variant", "allow_pickle")
    return json.dumps({name: model.get(name) for name in names})


@lru_cache(maxsize=16)
def _outline(place: str) -> Any:
    """The outline of a model that can be loaded, as far as its files are here."""
    from research.models.inspect.fit import checked
    from research.models.summary import outline

    model = json.loads(place)
    variant, allow_pickle = model.pop("variant"), bool(model.pop("allow_pickle"))
    found = find_pipeline(model["path"], revision=model["revision"], subfolder=model["subfolder"])
    directory = local_directory(found, offline=model["offline"], variant=variant)
    if directory is not None:
        checked(directory, allow_pickle=allow_pickle, variant=variant)
    return outline(**model)


def _own_solvers(asked: str, model: Any, parity: bool) -> Any:
    from research.solvers import SchedulerSpec

    node, sigmas = json.loads(asked)
    spec = SchedulerSpec(node["name"], node["class_name"], node["options"])
    return model.solvers(spec, None, parity=parity, sigmas=sigmas_of({"sigmas": sigmas}))


@lru_cache(maxsize=256)
def _solvers(asked: str, place: str, parity: bool) -> SolverFactory:
    from research.solvers import SchedulerSpec
    from research.solvers.build import SolverFactory

    node, sigmas = json.loads(asked)
    spec = SchedulerSpec(node["name"], node["class_name"], node["options"])
    known = _outline(place)
    return SolverFactory(
        spec, None, known.scheduler_config, parity=parity, sigmas=sigmas_of({"sigmas": sigmas}), schedule=known.schedule
    )

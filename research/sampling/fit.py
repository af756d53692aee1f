"""Whether plugs fit one another, and model and scheduler: checked before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from research.checks import check_whole_number
from research.errors import ConfigError
from research.sampling.interfaces import Guidance, Hook, Model, ModelFacts, Solver, Task


def checked_model(model: Any) -> Model:
    """The model, if it is a loaded one.

    Raises:
        ConfigError: a name, a path, a diffusers pipeline or anything else; the message says how it is loaded.
    """
    if isinstance(model, str | os.PathLike):
        raise ConfigError(f"model: found {str(model)!r}; accepted is a loaded model: load_model({str(model)!r}).")
    if hasattr(model, "save_pretrained"):
        raise ConfigError(f"model: found {type(model).__name__}; accepted is a loaded model: load_model(pipeline).")
    if isinstance(model, type) or not hasattr(model, "solvers") or not hasattr(model, "denoiser"):
        raise ConfigError(f"model: found {model!r:.100}; accepted is a loaded model: load_model('emoji').")
    loaded: Model = model
    return loaded


def checked_guidance(guidance: Any) -> Guidance:
    """The guidance, or none for None.

    Raises:
        ConfigError: it is none; the message says what was probably meant.
    """
    if guidance is None:
        return Guidance()
    if isinstance(guidance, Guidance):
        return guidance
    if isinstance(guidance, type):
        how = f"an object, {guidance.__name__}(...), and not the class"
    elif isinstance(guidance, int | float) and not isinstance(guidance, bool):
        how = f"a guidance, for this scale of classifier-free guidance CFG({guidance:g})"
    elif isinstance(guidance, str):
        how = "an object of a class in research.guidance, such as CFG(7.5); names are for the command line"
    else:
        how = "an object of a subclass of research.guidance.Guidance"
    raise ConfigError(f"guidance: found {guidance!r:.100}; accepted is {how}.")


def checked_hooks(hooks: Any) -> list[Hook]:
    """Hooks as a list; one by itself may stand without brackets.

    Raises:
        ConfigError: something among them is no hook.
    """
    single = isinstance(hooks, Hook | type) or not isinstance(hooks, Iterable)
    listed: list[Any] = [hooks] if single else list(hooks)
    for hook in listed:
        if isinstance(hook, type) and issubclass(hook, Hook):
            raise ConfigError(f"hooks: found the class {hook.__name__}; accepted are objects: {hook.__name__}(...).")
        if not isinstance(hook, Hook):
            raise ConfigError(f"hooks: found {hook!r:.100}; accepted are objects of subclasses of research.Hook.")
    return listed


def checked_task(task: Any) -> Task:
    """The task, if it is one.

    Raises:
        ConfigError: a sentence, a class or anything else; the message says what was probably meant.
    """
    if isinstance(task, str) or (isinstance(task, list | tuple) and all(isinstance(each, str) for each in task)):
        raise ConfigError(f"task: found {task!r:.100}; accepted is a task: TextToImage({task!r:.100}).")
    if isinstance(task, type):
        raise ConfigError(f"task: found the class {task.__name__}; accepted is an object: {task.__name__}(...).")
    if missing := [name for name in ("check", "prepare", "start", "finish") if not hasattr(task, name)]:
        raise ConfigError(
            f"task: found {task!r:.100}, which has no {missing[0]}; accepted is a task such as TextToImage('a prompt')."
        )
    known: Task = task
    return known


def check_plugs(guidance: Guidance, hooks: Sequence[Hook], model: ModelFacts, solver: Solver) -> None:
    """Check that guidance and hooks fit model and scheduler, and the hooks one another.

    Raises:
        ConfigError: they do not.
    """
    check_offers("guidance", guidance, model, solver)
    guidance.check(model, solver)
    for hook in hooks:
        check_offers("hooks", hook, model, solver)
        hook.check(model, solver)
    check_claims(hooks)


def check_offers(key: str, plug: Guidance | Task | Hook, model: ModelFacts, solver: Solver) -> None:
    """Check that model and scheduler offer what a guidance, task or hook requires.

    Raises:
        ConfigError: something is missing; the message names it, and them.
    """
    offers = model.supports | solver.supports
    if missing := sorted(plug.requires - offers):
        raise ConfigError(
            f"{key}: {type(plug).__name__} needs {', '.join(_NEEDS.get(name, name) for name in missing)}; model {model.name} "
            f"and scheduler {solver.name} offer {', '.join(sorted(offers))}."
        )


def check_negative_prompt(task: Task, guidance: Guidance, model: ModelFacts) -> None:
    """Check that a negative prompt is of use. With most models one that no guidance asks for is warned of and ignored, as their
    pipelines do; models with a guidance scale of their own are sampled without CFG, where that would be easy to miss.

    Raises:
        ConfigError: it is not.
    """
    if getattr(model, "distilled_guidance", None) is None or not getattr(task, "negative_prompt", None):
        return
    if "uncond" not in guidance.requires:
        raise ConfigError(
            f"task.negative_prompt: found {task.negative_prompt!r:.60}; {model.name} has its guidance distilled into it and is "
            "sampled without CFG, accepted is null, or a guidance that asks for it (guidance=cfg)."
        )


# what a requirement means, where its name does not say it
_NEEDS = {
    "text": "a model that takes text",
    "word-places": "a text encoder with a token of the sentence at each place of the embeddings (a weight of a word)",
    "deterministic": "a deterministic scheduler, one that adds no noise of its own",
    "first-order": "a first-order scheduler, with one evaluation a step and no memory of the last (ddim, ddpm, euler, euler_a)",
    "renoise": "a scheduler with a CFG++ kind (ddim, ddpm, euler, euler_a, lcm, tcd; without parity dpmpp_2m, dpmpp_2s_a)",
    "revisits": "a scheduler that can go back to a step, first-order and without parity",
    "attention": "a network with attention",
    "noise-levels": "a scheduler whose noise levels are known",
}


def check_claims(hooks: Sequence[Hook], claimed: frozenset[str] = frozenset(), by: str = "the task") -> None:
    """Check that no two hooks claim the same.

    Args:
        claimed: what is claimed already, ``by`` somebody.

    Raises:
        ConfigError: two do.
    """
    owners = dict.fromkeys(claimed, by)
    for hook in hooks:
        name = type(hook).__name__
        for claim in sorted(hook.claims):
            if claim in owners:
                raise ConfigError(
                    f"hooks: {name} conflicts with {owners[claim]}, both change the {claim}; accepted is one of them."
                )
            owners[claim] = name


def checked_seeds(seeds: Iterable[int] | int | None) -> list[int]:
    """Seeds as ints, one an image; a whole number is the seed of one image.

    Raises:
        ConfigError: no list, an empty one, or one with something else than whole numbers from 0.
    """
    if seeds is not None and not isinstance(seeds, Iterable | str):
        return [check_whole_number("seeds", seeds)]
    if seeds is None or isinstance(seeds, str):
        raise ConfigError(f"seeds: found {seeds!r}; accepted is a list with one seed an image.")
    listed = list(seeds)
    if not listed:
        raise ConfigError("seeds: found an empty list; accepted is one seed an image.")
    return [check_whole_number("seeds", seed) for seed in listed]

"""Whether plugs fit one another, and model and scheduler: checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from research.checks import check_whole_number
from research.errors import ConfigError
from research.sampling.interfaces import Guidance, Hook, ModelFacts, Solver, Task


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


# what a requirement means, where its name does not say it
_NEEDS = {
    "deterministic": "a deterministic scheduler, one that adds no noise of its own",
    "first-order": "a first-order scheduler, with one evaluation a step and no memory of the last (ddim, ddpm, euler, euler_a)",
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


def checked_seeds(seeds: Iterable[int] | None) -> list[int]:
    """Seeds as ints, one an image.

    Raises:
        ConfigError: no list, an empty one, or one with something else than whole numbers from 0.
    """
    if not isinstance(seeds, Iterable):
        raise ConfigError(f"seeds: found {seeds!r}; accepted is a list with one seed an image.")
    listed = list(seeds)
    if not listed:
        raise ConfigError("seeds: found an empty list; accepted is one seed an image.")
    return [check_whole_number("seeds", seed) for seed in listed]

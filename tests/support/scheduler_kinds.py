"""Schedulers by kind: what a matrix over all of them runs by default, and what it keeps for ``pytest -m slow``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from research.solvers import resolve, scheduler_names

# one of each kind, by what a loop can get wrong about it
REPRESENTATIVES = {
    "ddim": "one evaluation, no memory",
    "euler_a": "ancestral noise at each step",
    "heun": "two evaluations a step",
    "dpmpp_2m": "a history of predictions",
    "dpmpp_sde": "a Brownian tree, and two evaluations",
    "lms": "coefficients from a history of levels",
    "pndm": "a warm-up with an evaluation more",
    "unipc": "a corrector that changes the latents it is given",
    "lcm": "noise of its own, levels of its own",
    "flow_euler": "flow time in the place of noise levels",
}


# names of solvers that no class of diffusers stands behind: no parity, and native at any levels
OWN = frozenset(name for name in scheduler_names() if "." in resolve(name).class_name)


def upstream_names() -> list[str]:
    """Short names of classes of diffusers; ``model`` is that of whatever model there is."""
    return [name for name in scheduler_names() if name not in OWN and name != "model"]


def of_each_kind(names: Iterable[str]) -> list[Any]:
    """All names as parameters of a test; those that stand for no kind are marked slow."""
    return [name if name in REPRESENTATIVES else pytest.param(name, marks=pytest.mark.slow) for name in names]

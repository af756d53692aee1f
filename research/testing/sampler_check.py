"""The check of samplers above the loop: run around the loop of a model that is known in closed form."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from research.errors import UserError, one_line
from research.samplers.scores import FunctionScore
from research.sampling import LoopSampler, SampleResult
from research.tasks import Unconditional
from research.testing.gaussian import GaussianModel
from research.testing.plug_rules import Finding, place_of

SEEDS = (3, 11, 27)
STEPS = 6
_CLOSE = 1e-5


class _Near:
    """How near latents are to a point."""

    sees = "latents"
    name = "nearness"

    def __call__(self, latents: Tensor) -> Tensor:
        return -(latents - 1.0).square().flatten(1).sum(1) / 2


def check_sampler(plug: Any, found: Callable[[Finding], None], checked: list[str]) -> None:
    """Hold a sampler against what jobs rely on: one image a seed, the same alone and in any batch, no state from run to run, and
    costs that are counted.

    Args:
        plug: it is copied, and given a loop and a score of latents of the check's own where it has a score.
        found: takes what is found.
        checked: takes the names of what was looked at.
    """
    place = place_of(plug)

    def error(rule: str, problem: str, cure: str) -> None:
        found(Finding("error", rule, place, problem, cure))

    def fresh() -> Any:
        mine = copy.copy(plug)
        mine._loop = LoopSampler(GaussianModel(0.3, 0.8, shape=(1, 2, 2)), "euler_a")
        if getattr(mine, "score", None) is not None:
            mine.score = FunctionScore(_Near())
        return mine

    def run(one: Any, seeds: Sequence[int], batch_size: int | None = None) -> SampleResult | None:
        try:
            made: SampleResult = one.sample(Unconditional(), seeds=list(seeds), steps=STEPS, batch_size=batch_size)
            return made
        except UserError as refused:
            error("runs", f"refuses a plain job: {one_line(refused)}", "Give the arguments it is to be checked with.")
        except Exception as raised:
            error("runs", f"raises {one_line(raised)}", "search(group) gives a Found for each image of the group.")
        return None

    checked += ["runs", "returned", "counts", "state", "batch"]
    one = fresh()
    together = run(one, SEEDS)
    if together is None:
        return
    if len(together.images) != len(SEEDS) or list(together.seeds) != list(SEEDS):
        error(
            "returned",
            f"gives images of the seeds {list(together.seeds)} for {list(SEEDS)}",
            "Give one image a seed, in order.",
        )
        return
    if not torch.isfinite(together.latents).all():
        error("returned", "gives latents that are not finite", "Give those of a candidate.")
    if together.nfe < STEPS or (fresh().score is not None and together.score_evaluations < 1):
        counts = f"{together.nfe} evaluations and {together.score_evaluations} scores an image of {STEPS} steps"
        cure = "Make candidates with group.trajectory and end each with group.finished or group.end."
        error("counts", f"counts {counts}", cure)
    again = run(one, SEEDS)
    if again is not None and not _close(again.latents, together.latents):
        error("state", "gives other images in a second run of the same object", "Keep nothing from run to run.")
    if getattr(plug, "images_together", 1) > 1:
        return
    for said, seeds, batch_size in (
        ("alone", SEEDS[1:2], None),
        ("in batches of one candidate", SEEDS, 1),
        ("in one batch", SEEDS, 1000),
    ):
        other = run(fresh(), seeds, batch_size)
        if other is None:
            return
        if not _close(other.latents[seeds.index(SEEDS[1])], together.latents[1]):
            cure = "Draw from generators of the image's own seed (candidate_seed), and score an image by itself."
            error("batch", f"gives another image {said} than together with others", cure)
            return


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).norm()) <= _CLOSE * max(float(b.norm()), 1e-12)

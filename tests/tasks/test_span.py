"""`denoising_end` and `denoising_start`: a part of the denoising, and another run that goes on from there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from research import Hook, LoopSampler
from research.errors import ConfigError
from research.guidance import CFG
from research.models import BaseModel
from research.tasks import TextToImage


def run(sd: BaseModel, scheduler: str, steps: int = 10, **task: Any) -> Any:
    sampler = LoopSampler(sd, scheduler, guidance=CFG(2.0))
    return sampler.sample(TextToImage("a cat", "dog", **task), seeds=[0, 1], steps=steps)


@pytest.mark.parametrize("scheduler", ["euler", "ddim", "heun", "dpm2"])
@pytest.mark.spread(1)
def test_two_parts_make_the_whole(sd: BaseModel, scheduler: str) -> None:
    whole = run(sd, scheduler)
    first = run(sd, scheduler, denoising_end=0.55)
    second = run(sd, scheduler, denoising_start=0.55, latents=first.latents)
    assert torch.equal(second.latents, whole.latents)
    assert first.nfe + second.nfe == whole.nfe
    assert 0 < first.nfe < whole.nfe
    middle = run(sd, scheduler, denoising_end=0.3)
    middle = run(sd, scheduler, denoising_start=0.3, denoising_end=0.55, latents=middle.latents)
    assert torch.equal(middle.latents, first.latents)


def test_a_part_knows_the_level_at_which_it_ends(sd: BaseModel) -> None:
    ends = []

    class Look(Hook):
        def on_end(self, run: Any) -> None:
            ends.append((run.timeline[len(run.timeline) - 1].sigma_next, run.solver.end_level))

    for end in (0.55, None):
        LoopSampler(sd, "euler", hooks=Look()).sample(TextToImage("a cat", denoising_end=end), seeds=1, steps=10)
    (between, level), (clean, last) = ends
    assert between == pytest.approx(level[1] / level[0])
    assert between > 0.1
    assert (clean, last[1]) == (0, 0)


def test_latents_may_be_of_another_size(sd: BaseModel) -> None:
    first = run(sd, "ddim", height=24, denoising_end=0.5)
    assert run(sd, "ddim", latents=first.latents, denoising_start=0.5).images[0].size == (16, 24)


REFUSED = {
    "task.denoising_end: found 1; accepted is a number": {"denoising_end": 1},
    "task.denoising_start: found 'half'; accepted is a number": {"denoising_start": "half"},
    "task.latents: found null with task.denoising_start": {"denoising_start": 0.5},
    "task.denoising_end: found 0.4; accepted is more than": {
        "denoising_end": 0.4, "denoising_start": 0.5, "latents": torch.zeros(2, 4, 8, 8)
    },
    "task.denoising_*: end=0.01 leaves none of 3 steps": {"denoising_end": 0.01},
    "task.latents: found the shape [3, 4, 8, 8]": {"denoising_start": 0.5, "latents": torch.zeros(3, 4, 8, 8)},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_work(sd: BaseModel, message: str) -> None:
    with pytest.raises(ConfigError) as found:
        run(sd, "ddim", steps=3, **REFUSED[message])
    assert str(found.value).startswith(message)

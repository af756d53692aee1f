"""What metrics are told of how a job is sampled."""

from __future__ import annotations

from pathlib import Path

from research.jobs.compose import Composer
from research.jobs.scoring import _grid
from research.jobs.validate import validate


def test_where_so_many_steps_begin(tiny_sd: Path) -> None:
    """With leading timesteps DPM++ 2M divides by steps + 1: 500 steps of 1000 cover its lower half only, 499 all of it."""
    with Composer() as composer:
        lines = [f"model.path={tiny_sd}", "tracker=none", "metrics=none", "prompts=[fox]", "scheduler=dpmpp_2m"]
        config = validate(composer.job(composer.master([]), composer.normalise(lines)))
    whole = _grid(config, 499, None).first
    assert _grid(config, 500, None).first < 0.3 * whole
    assert _grid(config, 500, "ddim").first > 0.9 * whole

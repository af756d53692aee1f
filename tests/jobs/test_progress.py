"""The bars of a job and of a sweep end at all of it, whatever happened on the way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.small_jobs import working_folder

from research.cli import run
from research.jobs.progress import Progress, StepsMade

PLUGS = """
import torch
from research import Hook

class Large(Hook):
    def pre_step(self, state):
        if len(state.x) > 1:
            raise torch.cuda.OutOfMemoryError("too large")

class Fails(Hook):
    def pre_step(self, state):
        if state.stage.index == 2:
            raise RuntimeError("no luck")
"""


@pytest.fixture
def base(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    working_folder(tmp_path, monkeypatch, "bar_plugs", PLUGS)
    return [f"model.path={tiny_sd}", "tracker=none", "metrics=none", "prompts=[fox]", "runtime.progress=bars"]


def shown(text: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What stood on the bar of the sweep and on those of jobs, one after the other: done, in all."""
    lines = re.split(r"[\r\n]", text)
    numbers = [re.search(r"\| (\d+)/(\d+) \[", line) for line in lines]
    found = [(line, (int(m[1]), int(m[2]))) for line, m in zip(lines, numbers, strict=True) if m]
    return [n for line, n in found if "sweep" in line], [n for line, n in found if "sweep" not in line]


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    ("own", "steps"),
    [
        pytest.param([], 3, id="plain"),
        pytest.param(["scheduler=heun"], 3, id="second order"),
        pytest.param(["scheduler=dpm2", "guidance.scale=3,4"], 3, id="one batch for two jobs"),
        pytest.param(["+hooks.large._target_=bar_plugs.Large"], 3, id="halved"),
        pytest.param(["batch_size=2", "images_per_prompt=3"], 6, id="a smaller last batch"),
    ],
)
def test_a_jobs_bar_ends_at_all_its_steps(
    base: list[str], own: list[str], steps: int, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = [*base, "steps=3", *([] if "images_per_prompt" in str(own) else ["images_per_prompt=2"]), *own]
    assert run((["-m"] if any("," in line for line in own) else []) + lines) == 0
    sweep, job = shown(capfd.readouterr().err)
    assert job[-1] == (steps, steps)
    assert [done for done, _ in job] == sorted(done for done, _ in job), "it goes up alone"
    assert not sweep or sweep[-1] == (2, 2)


def test_a_sweeps_bar_counts_failed_jobs_and_each_of_those_that_share_a_batch(
    base: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    lines = ["-m", *base, "steps=3,4", "guidance.scale=3,4"]
    assert run([*lines, "+hooks.fails._target_=bar_plugs.Fails"]) == 1
    sweep, _ = shown(capfd.readouterr().err)
    assert sweep[-1] == (4, 4)


def test_steps_made_of_a_job_that_goes_on_within_a_batch() -> None:
    heard: list[tuple[int, int, str]] = []
    made = StepsMade(lambda *told: heard.append(told), n_images=10, size=4, steps=5)
    for places in ([3, 4, 5, 6], [7, 8, 9]):
        for done in (1, 5):
            made(done, 5, {"places": places})
    assert [(done, total) for done, total, _ in heard] == [(6, 15), (10, 15), (11, 15), (15, 15)]


def test_a_job_without_a_step_to_take_is_told_as_complete() -> None:
    heard: list[tuple[int, int, str]] = []
    StepsMade(lambda *told: heard.append(told), n_images=2, size=1, steps=4).complete()
    assert heard == [(8, 8, "batch 2 of 2")]


def test_what_raises_has_not_ended() -> None:
    progress = Progress("none", 3)
    with pytest.raises(RuntimeError), progress.job("lost", 2):
        raise RuntimeError("claim lost")
    progress.elsewhere("lost")
    assert progress.done == 1

"""Samplers above the loop as jobs: composed, planned, run, interrupted, made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.small_jobs import settings_of, working_folder

from research.cli import run
from research.jobs import signals
from research.jobs.compose import Composer
from research.jobs.estimate import estimate
from research.jobs.identity import job_id
from research.jobs.planning import plan
from research.jobs.signals import Interrupted

SCORE = "sampler.score={_target_: my_scores.Bright}"
PLUGS = '''
class Bright:
    """Mean brightness."""

    sees = "pixels"

    def __call__(self, pixels):
        return pixels.flatten(1).mean(1)
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    return working_folder(tmp_path, monkeypatch, "my_scores", PLUGS)


@pytest.fixture
def base(tiny_sd: Path) -> list[str]:
    return [*settings_of(tiny_sd, steps=3), "scheduler=euler_a", "images_per_prompt=2"]


def record(folder: Path) -> dict:
    (file,) = folder.glob("outputs/*/*/result.json")
    return json.loads(file.read_text())


SAMPLERS = {
    "best_of_n": (["sampler.n=3"], 3, 3),
    "zero_order": (["sampler.neighbours=2", "sampler.iterations=1"], 3, 3),
    "search_over_paths": (["sampler.forth=1"], None, None),
    "fk_steering": (["sampler.particles=2"], 2, None),
    "smc": (["sampler.particles=2"], 2, None),
    "noise_optimisation": (["sampler.iterations=1"], 2, 2),
    "particle_guidance": (["sampler.particles=2"], 1, 0),
}


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_job_counts_what_was_planned_and_is_made_again(name, here, base, capsys):
    settings, times, scores = SAMPLERS[name]
    lines = [*base, f"sampler={name}", *settings, *([SCORE] if name != "particle_guidance" else [])]
    with Composer() as composer:
        (job,) = plan(composer, composer.master([]), [composer.normalise(lines)])
    assert run(lines) == 0
    found = record(here)
    assert found["nfe"] == estimate(job.config).nfe
    assert estimate(job.config).exact
    if times is not None:
        assert found["nfe"] == times * 3 * 2
    if scores is not None:
        assert found["score_evaluations"] == scores
    assert found["decoder_calls"] >= 1
    assert [image["seed"] for image in found["images"]] == [0, 1, 2, 3]
    picture = next(here.glob("outputs/*/*/images/00001*.png"))
    assert run(["again", str(picture), "--trust-plugs"]) == 0
    said = capsys.readouterr().out
    assert "equal" in said or "up to 1 of 255" in said  # in a batch of another size


def test_ids_are_what_they_were_without_a_sampler(here, base):
    with Composer() as composer:
        master = composer.master([])
        (job,) = plan(composer, master, [composer.normalise(base)])
        older = {key: value for key, value in job.config.items() if key != "sampler"}
        assert job_id(older) == job.id
        (search,) = plan(composer, master, [composer.normalise([*base, "sampler=best_of_n", SCORE])])
        (same,) = plan(composer, master, [composer.normalise([*base, "sampler=best_of_n", SCORE, "sampler.n=4"])])
        assert search.id != job.id
        assert search.id == same.id


@pytest.mark.slow
def test_a_job_goes_on_after_the_last_image(here, base, monkeypatch):
    lines = [*base, "sampler=best_of_n", "sampler.n=2", SCORE, "batch_size=2"]
    assert run([*lines, "sweep_name=straight"]) == 0
    straight = record(here)
    calls = []

    def stop_once() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Interrupted

    monkeypatch.setattr(signals, "check", stop_once)
    assert run([*lines, "sweep_name=stopped"]) != 0
    monkeypatch.undo()
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    (partial,) = here.glob("outputs/stopped/*/partial.json")
    assert len(json.loads(partial.read_text())["images"]) in (1, 2)
    assert run([*lines, "sweep_name=stopped"]) == 0
    (file,) = here.glob("outputs/stopped/*/result.json")
    found = json.loads(file.read_text())
    assert [image["sha256"] for image in found["images"]] == [image["sha256"] for image in straight["images"]]
    assert (found["nfe"], found["score_evaluations"]) == (straight["nfe"], straight["score_evaluations"])


REFUSED = {
    "n": (["sampler=best_of_n", "sampler.n=0"], "sampler.n: found 0"),
    "a set": (["sampler=best_of_n", "sampler.score=fid"], "fid is a number of a set"),
    "two metrics": (["sampler=best_of_n", "sampler.score=default"], "which is 2 metrics"),
    "no such score": (["sampler=best_of_n", "sampler.score=clip_scor"], "sampler.score: found 'clip_scor'"),
    "an argument to give": (["sampler=best_of_n", "sampler.score=aesthetic"], "whose head must be given"),
    "no such setting": (["sampler=best_of_n", "sampler.particles=2"], "sampler.particles"),
    "an option of the loop": (["+sampler.n=2"], "sampler=loop, which has no options"),
    "no noise": (["sampler=fk_steering", "scheduler=ddim"], "scheduler ddim adds none"),
    "no gradients": (["sampler=smc", "sampler.score=clip_score"], "clip_score has no gradients"),
    "frames": (
        ["sampler=best_of_n", "task=interpolation", "images_per_prompt=1", "scheduler=ddim"],
        "task: interpolation",
    ),
    "a batch": (["sampler=particle_guidance", "batch_size=1"], "batch_size: found 1"),
    "solver error": (["sampler=best_of_n", "metrics=solver_error", "scheduler=ddim"], "metrics.solver_error"),
}


@pytest.mark.spread(3)
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_said_before_anything_runs(case, here, base, capsys):
    lines, told = REFUSED[case]
    assert run([*base, *lines]) == 2
    assert told in capsys.readouterr().err
    assert not list(here.glob("outputs/*/*/result.json"))

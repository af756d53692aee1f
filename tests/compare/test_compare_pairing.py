"""Which images belong together, for any jobs; and that a number's provenance is what it was computed with, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.compare.jobs import ComparedJob, gather
from research.compare.pairing import share
from research.compare.provenance import differs, what_differs
from research.compare.sides import Side
from research.jobs.record import JobResult
from research.results.axes import flatten
from research.results.read import Row

IMAGES = st.lists(
    st.tuples(st.sampled_from(["fox", "owl", "<script>", "é🙂", ""]), st.integers(0, 3)), min_size=1, max_size=12
)


def job(images: list[tuple[str, int]], name: str = "a", **record: Any) -> ComparedJob:
    config = {"steps": 1, "guidance": {"scale": 1.0}, **record.pop("config", {})}
    told = {
        "job_id": name,
        "status": "done",
        "config": config,
        "images": [
            {"file": f"{k}.png", "prompt": p, "seed": s, "sha256": f"{name}{k}"} for k, (p, s) in enumerate(images)
        ],
        **record,
    }
    return ComparedJob([Row(Path(name), msgspec.convert(told, JobResult), flatten(config))])


def side(name: str, *jobs: ComparedJob) -> Side:
    made = Side(name, list(jobs))
    for one in jobs:
        made.cells.setdefault((), {}).update({key: (one, place) for place, key in enumerate(one.keys)})
    return made


@given(IMAGES, IMAGES)
def test_pairs_are_the_common_prompts_and_seeds_whoever_comes_first(first, second):
    a, b = side("a", job(first, "a")), side("b", job(second, "b"))
    forth, back = share([a, b], "images"), share([b, a], "images")
    assert forth.cells == back.cells
    common = sum(min(first.count(pair), second.count(pair)) for pair in set(first))
    assert len(forth) == common
    assert len(forth.units) == common
    for one in (a, b):
        for prompt, seed, _ in (key for keys in forth.cells.values() for key in keys):
            assert (prompt, seed) in {(p, s) for p, s, _ in one.jobs[0].keys}


@given(IMAGES)
def test_prompts_as_units_hold_all_their_images(images):
    both = share([side("a", job(images, "a")), side("b", job(images, "b"))], "prompts")
    assert len(both) == len(images)
    assert set(both.units) == {prompt for prompt, _ in images}


def test_the_same_job_twice_is_a_repeated_run_and_other_metrics_of_the_same_images_are_one_job():
    first, again = job([("fox", 0)]).row, job([("fox", 0)]).row
    again = Row(Path("elsewhere"), again.result, again.settings)
    scored = job([("fox", 0)], "b", config={"metrics": {"kid": {}}}).row
    scored.result.images[0].sha256 = "a0"
    other = job([("fox", 0)], "c", config={"steps": 2}).row
    other.result.images[0].sha256 = "a0"
    found = gather([first, again, scored, other])
    assert [len(j.rows) for j in found] == [2, 1]
    assert [len(j.repeats) for j in found] == [1, 0]


FID = {
    "definition": "Frechet distance of Gaussians",
    "features": {"name": "emoji-eval", "weights_sha256": "1" * 64, "preprocess": {"size": 32}},
    "reference": {"name": "emoji", "sha256": "2" * 64, "num_samples": 10},
    "n_images": 8,
    "comparable": "x",
    "versions": {"torch": "2"},
}


def scored(name: str, **changes: Any) -> Side:
    return side(name, job([("fox", 0)], name, metrics={"fid": 1.0}, metrics_info={"fid": {**FID, **changes}}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"n_images": 16, "comparable": "y"}, ""),  # computed anew over as many of both
        ({"versions": {"torch": "3"}, "warnings": ["few"], "bias_estimate": 3.0}, ""),
        ({"features": {**FID["features"], "name": "a copy"}}, ""),
        ({"features": {**FID["features"], "preprocess": {"size": 64}}}, "features.preprocess.size 32 and 64"),
        ({"reference": {**FID["reference"], "sha256": "3" * 64}}, "reference.sha256 222222222222 and 333333333333"),
    ],
)
def test_what_makes_two_distances_of_one_kind(changes, said):
    assert differs(scored("a"), scored("b", **changes), "fid") == said
    assert bool(differs(scored("b", **changes), scored("a"), "fid")) == bool(said)


def test_jobs_of_one_side_that_differ_among_themselves():
    mixed = side("a", *scored("x").jobs, *scored("y", reference={"sha256": "3" * 64}).jobs)
    assert "reference" in differs(mixed, scored("b"), "fid")
    assert "reference" in differs(scored("b"), mixed, "fid")


def test_an_older_record_is_judged_by_what_it_says():
    old = {"definition": "mean", "model": "m", "n_images": 8}
    assert what_differs(old, {**old, "n_images": 4, "comparable": "z"}) == ""
    assert what_differs(old, {**old, "model": "n", "comparable": "z"}) == "model m and n"
    assert "does not say" in what_differs(old, {})

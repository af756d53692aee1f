"""Report, comparison and studies say the same of the same two jobs."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.sweep_samples import PROMPTS, write_job
from torch.nn.functional import normalize

from research.compare.comparing import compare
from research.compare.outcome import Request
from research.metrics.frechet import distance_of_features
from research.metrics.mmd import discrepancy, gaussian, polynomial
from research.metrics.reference import Sums, read_reference, save_reference
from research.metrics.saved_features import SavedFeatures, save_features
from research.report.columns import metric, pairs_of
from research.results.intervals import difference, interval
from research.results.read import read_row, read_sweep

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import common

DIMENSION = 6
PROVENANCE = {
    "name": "made up",
    "weights_sha256": "12" * 32,
    "layer": "none",
    "dimension": DIMENSION,
    "preprocess": "none",
}


def scored(sweep: Path, number: int, steps: int, per_prompt: int) -> Path:
    """A job of eight prompts with several images each, whose scores are alike within a prompt."""
    folder = write_job(sweep, steps=steps, number=number, prompts=[p for p in PROMPTS for _ in range(per_prompt)])
    file = folder / "result.json"
    record = json.loads(file.read_text())
    rng = np.random.default_rng(number)
    hard = np.repeat(np.random.default_rng(9).normal(70, 8, len(PROMPTS)), per_prompt)
    scores = hard + np.repeat(rng.normal(number, 2, len(PROMPTS)), per_prompt) + rng.normal(0, 2, len(hard))
    record["metrics"]["clip_score"] = float(scores.mean())
    record["metrics_info"]["clip_score"]["per_image"] = scores.tolist()
    for place, image in enumerate(record["images"]):
        image["seed"] = place % per_prompt
        image.pop("scores", None)
    file.write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("per_prompt", [1, 6])
def test_the_same_two_jobs_have_the_same_interval_everywhere(tmp_path: Path, per_prompt: int) -> None:
    a, b = (scored(tmp_path / "s", number, steps, per_prompt) for number, steps in ((0, 5), (1, 10)))
    rows = read_row(a), read_row(b)
    in_report = difference(rows[1], rows[0], "clip_score")
    in_study = common.difference(common.scores(rows[1], "clip_score"), common.scores(rows[0], "clip_score"))
    (outcome,) = compare(Request(places=(str(a), str(b)), metrics=("clip_score",))).outcomes
    assert in_report == in_study
    assert in_report is not None
    assert in_report.n == outcome.n == len(PROMPTS)
    assert outcome.unit == ("prompts" if per_prompt > 1 else "images")
    found = (outcome.difference, outcome.low, outcome.high, outcome.p)
    assert found == pytest.approx((in_report.value, in_report.low, in_report.high, in_report.p))


def with_sets(folder: Path, reference: Path, number: int) -> None:
    """Give a job FID, KID and CMMD, from features that it keeps."""
    file = folder / "result.json"
    record = json.loads(file.read_text())
    vectors = torch.from_numpy(np.random.default_rng(5).normal(0, 1, (len(record["images"]), DIMENSION))).float()
    vectors = (vectors * (1 + 0.05 * number) + 0.9 * number).half().float()
    info = save_features(folder, SavedFeatures(vectors, PROVENANCE))
    real = read_reference(reference, "reference")
    real_vectors = real.all_vectors("reference").double()
    record["config"]["metrics"] = {}
    values = {
        "fid": ("Frechet distance of Gaussians", distance_of_features(vectors, real.gaussian)),
        "kid": ("KID (arXiv:1801.01401)", discrepancy(vectors, real_vectors, polynomial(DIMENSION)).unbiased),
        "cmmd": (
            "CMMD (arXiv:2401.09603): Gaussian kernel of 10",
            1000
            * discrepancy(normalize(vectors.double(), dim=1), normalize(real_vectors, dim=1), gaussian(10)).unbiased,
        ),
    }
    for name, (definition, value) in values.items():
        record["metrics"][name] = value
        record["metrics_info"][name] = {
            **info, "definition": definition, "features": PROVENANCE, "reference": dict(real.info), "n_images": len(vectors)
        }  # fmt: skip
        record["config"]["metrics"][name] = {"reference": str(reference), "features": "none"}
    file.write_text(json.dumps(record))


def test_page_and_comparison_give_one_verdict_a_pair(tmp_path: Path) -> None:
    real = torch.from_numpy(np.random.default_rng(6).normal(0, 1, (60, DIMENSION))).float()
    sums = Sums(DIMENSION, torch.ones(60, dtype=torch.bool))
    sums.add(real)
    save_reference(tmp_path / "real.safetensors", sums.reference(PROVENANCE, {}), {})
    for number in range(5):
        with_sets(
            scored(tmp_path / "s", number, 5 + number, 1 if number < 5 else 2),
            tmp_path / "real.safetensors",
            number % 4,
        )
    sweep = read_sweep(tmp_path / "s")
    every = compare(Request(places=(str(tmp_path / "s"),))).outcomes
    verdicts: dict[tuple[str, frozenset[str]], str] = {(o.metric, frozenset((o.a, o.b))): o.verdict for o in every}
    seen = set()
    for key in ("clip_score", "fid", "kid", "cmmd"):
        pairs = pairs_of(sweep, metric(key))
        for a, b in itertools.combinations(sweep.done, 2):
            names = frozenset(f"steps {row.settings['steps']}" for row in (a, b))
            assert pairs.told_apart(a, b) == (verdicts[key, names] in ("better", "worse")), (key, names)
            seen.add((key, verdicts[key, names] in ("better", "worse")))
    assert {("kid", True), ("fid", True), ("clip_score", False)} <= seen
    # a baseline shows fewer pairs, and says the same of them
    for outcome in compare(Request(places=(str(tmp_path / "s"),), baseline="steps 7")).outcomes:
        assert verdicts[outcome.metric, frozenset((outcome.a, outcome.b))].startswith(("not", "equal", "no")) == (
            outcome.verdict.startswith(("not", "equal", "no"))
        )


def test_a_jobs_own_interval_is_over_prompts(tmp_path: Path) -> None:
    row = read_row(scored(tmp_path / "s", 0, 5, 6))
    found, in_study = interval(row, "clip_score"), common.mean(common.scores(row, "clip_score"))
    assert found is not None
    assert (found.n, found.value) == (8, pytest.approx(row.metrics["clip_score"]))
    assert (found.low, found.high) == pytest.approx((in_study.low, in_study.high))

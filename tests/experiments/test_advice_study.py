"""Advice is seldom wrong: a small part of experiments/advice, which has the whole."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.advice.simulate import KINDS, STEPS, TRUTHS, advised, shares, sweep
from research.report.advice import advise

CASES = [(kind, gap, n) for kind in KINDS for gap in (1.01, 3.0) for n in (5, 30, 64)]


@pytest.mark.parametrize(("kind", "gap", "n"), CASES, ids=[f"{k.name}-{gap}-{n}" for k, gap, n in CASES])
@pytest.mark.spread(6)
def test_advice_is_seldom_wrong(kind, gap, n):
    _, wrong = shares(kind, TRUTHS["the dearest alone is better"], gap, n, cases=60)
    assert wrong <= 0.1  # 5 % and what 60 sweeps may add by chance


def test_a_clear_case_is_advised_on_and_equal_settings_are_by_many_images():
    assert shares(KINDS[0], TRUTHS["the dearest alone is better"], 10.0, 30, cases=10) == (1, 0)
    assert shares(KINDS[0], TRUTHS["the dearest alone is better"], 0.0, 500, cases=5) == (1, 0)


def test_the_simulation_asks_what_the_report_asks():
    rng = np.random.default_rng(0)
    for gap in (0.0, 3.0, 10.0):
        drawn = sweep(60 + rng.normal(0, 4, (len(STEPS), 40)) + gap * np.arange(len(STEPS))[:, None], 1)
        place, found = advised(drawn), advise(drawn)
        assert found is not None
        assert (None if place is None else drawn.rows[place]) is found.use

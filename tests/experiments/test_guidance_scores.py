"""Differences of FIDs in the study of guidance: centred on the truth where methods spread differently, and covering it."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.guidance.scores import pooled


@pytest.mark.slow
def test_differences_of_fids_cover_the_truth_where_spreads_differ():
    """The FID of few wide pictures has more bias than that of narrow ones: as measured, the difference lies beside the truth."""
    size, groups, prompts = 16, 4, 12
    centres = np.random.default_rng(0).normal(0, 0.7, (prompts, size))
    reference = np.zeros(size), np.eye(size)
    wide = 2.0

    def distance(scale):
        covariance = scale**2 * (np.cov(centres.T, bias=True) + 0.5 * np.eye(size))
        mean = scale * centres.mean(0)
        return mean @ mean + ((np.sqrt(np.linalg.eigvalsh(covariance)) - 1) ** 2).sum()

    truth = distance(wide) - distance(1.0)
    hits, naive, values = 0, [], []
    for case in range(100):
        noise = np.sqrt(0.5) * np.random.default_rng([1, case]).standard_normal((groups, prompts, size))
        clip = np.random.default_rng([2, case]).normal(80, 5, (groups, prompts))
        one, other = (pooled(scale * (centres + noise), clip, reference) for scale in (1.0, wide))
        value, half = other.fid_against(one)
        hits += abs(value - truth) <= half
        values.append(value)
        naive.append(other.fid - one.fid)
    assert hits >= 89
    assert abs(np.mean(values) - truth) < 0.3 * abs(np.mean(naive) - truth)
    assert one.clip_interval > 0
    assert one.fid_interval > 0


def test_one_group_of_seeds_has_no_interval():
    found = pooled(np.random.default_rng(0).normal(size=(1, 8, 4)), np.ones((1, 8)), (np.zeros(4), np.eye(4)))
    assert np.isnan([found.clip_interval, found.fid_interval, found.fid_against(found)[1]]).all()
    assert found.fid_against(found)[0] == pytest.approx(0)

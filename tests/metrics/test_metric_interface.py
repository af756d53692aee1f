"""A metric of one's own needs no base class: what it leaves out is filled in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from support.metric_samples import pictures

from research.errors import ConfigError
from research.metrics import FID, SSIM, AdditiveMetric, JobMetric, MetricResult, ScoredJob, check_metric, measure
from research.metrics.base import as_metric


class Brightness:
    """The least that a metric can be."""

    def compute(self, images, prompts, *, device):
        return SimpleNamespace(values={"brightness": float(len(images))})


class Seeds:
    name = "seeds"
    needs_job = True

    def check(self, *, n_images):
        if n_images > 2:
            raise ConfigError("metrics.seeds: too many.")

    def check_job(self, config):
        if not config["steps"]:
            raise ConfigError("metrics.seeds: no steps.")

    def compute(self, images, prompts, *, device, job=None):
        return MetricResult({"seeds": float(sum(job.seeds))})


class Counted(Brightness):
    def add_up(self, images, *, device, rows=None, total=None):
        return [len(images)]

    def parts(self, sums):
        return sums

    def conclude(self, sums, *, device):
        return MetricResult({"counted": float(sums[0])})


def test_what_a_metric_leaves_out_is_filled_in():
    metric = as_metric(Brightness(), "brightness")
    assert metric.name == "brightness"
    check_metric(Brightness(), 0, {"steps": 3})
    found = measure(Brightness(), pictures(3, seed=0), [""] * 3, device="cpu")
    assert (found.values, found.info, found.features) == ({"brightness": 3.0}, {}, None)


def test_a_metric_may_ask_for_the_job():
    assert isinstance(as_metric(Seeds(), "s"), JobMetric)
    job = ScoredJob({"steps": 3}, [4, 5])
    assert measure(Seeds(), pictures(2, seed=0), ["", ""], device="cpu", job=job).values == {"seeds": 9.0}
    for n_images, config, say in ((3, {"steps": 3}, "too many"), (2, {"steps": 0}, "no steps")):
        with pytest.raises(ConfigError, match=say):
            check_metric(Seeds(), n_images, config)


def test_a_metric_may_be_a_sum_over_images():
    metric = as_metric(Counted(), "counted")
    assert isinstance(metric, AdditiveMetric)
    assert metric.conclude(metric.add_up(pictures(4, seed=0), device="cpu"), device="cpu").values == {"counted": 4.0}


def test_the_projects_own_are_what_they_are():
    for own in (FID(), SSIM()):
        assert as_metric(own, "other") is own


def test_what_computes_nothing_is_no_metric():
    with pytest.raises(ConfigError, match=r"metrics\.mine: found a object without a method compute"):
        as_metric(object(), "mine")

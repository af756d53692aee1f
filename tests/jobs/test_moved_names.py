"""A ``_target_`` by the path that an older version had for a class still builds it, and the job keeps its id."""

from __future__ import annotations

import importlib

import pytest

from research.errors import ConfigError
from research.jobs.build import Origin, build, check_names
from research.jobs.compose import Composer
from research.jobs.moved_names import MOVED, current_name, with_current_names
from research.jobs.planning import plan
from research.jobs.signatures import signature

OLD_CLASSES = [
    "research.metrics.clip.Clip",
    "research.metrics.efficientnet_features.EfficientNetFeatures",
    "research.metrics.features.ClipFeatures",
    "research.metrics.features.Features",
    "research.metrics.features.InceptionFeatures",
    "research.metrics.images.Preprocess",
    "research.metrics.vision.VisionFeatures",
    "research.models.gaussian.GaussianModel",
    "research.models.gaussian_conditional.ConditionalGaussianModel",
    "research.models.gaussian_conditional.ConditionalGaussianTask",
    "research.models.gaussian_conditional.Gaussian",
    "research.models.gaussian_error.GaussianTask",
    "research.sampling.plugs.Guidance",
    "research.sampling.hooks.Hook",
    "research.sampling.run.Run",
    "research.sampling.sampler.SampleResult",
    "research.schedulers.build.SolverFactory",
    "research.tracking.base.Tracker",
]


@pytest.mark.parametrize("old", OLD_CLASSES)
def test_an_old_path_means_the_class_of_that_name_today(old):
    module, _, name = current_name(old).rpartition(".")
    assert getattr(importlib.import_module(module), name).__name__ == old.rpartition(".")[2]


def test_paths_of_today_and_of_others_stay():
    for name in ("research.guidance.CFG", "research.metricsclip.X", "my_guidance.Mine", "diffusers.DDIMScheduler"):
        assert current_name(name) == name
    assert not set(MOVED) & set(MOVED.values())


def test_nodes_inside_nodes_are_renamed_in_a_copy():
    node = {"_target_": "mine.X", "inner": [{"_target_": "research.models.gaussian_error.GaussianTask", "a": 1}]}
    assert with_current_names(node)["inner"][0]["_target_"] == "research.testing.gaussian_error.GaussianTask"
    assert node["inner"][0]["_target_"].startswith("research.models.")


OLD_TASK = {"_target_": "research.models.gaussian_error.GaussianTask", "strength": 0.5}


def test_an_old_path_is_built_and_its_arguments_are_checked():
    task = build(OLD_TASK, "task")
    assert type(task).__module__ == "research.testing.gaussian_error"
    assert task.strength == 0.5
    assert signature(OLD_TASK["_target_"]) == signature("research.testing.gaussian_error.GaussianTask")


def test_the_id_is_the_one_of_the_older_version(tmp_path):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "gauss.yaml").write_text("\n".join(f"{key}: {value}" for key, value in OLD_TASK.items()))
    with Composer(str(tmp_path)) as composer:
        master = composer.master([])
        [job] = plan(composer, master, [composer.normalise(["task=gauss", "metrics=none"])])
    assert job.digest.startswith("46d70c5a9c9f0b54")  # computed by 0.1.0
    assert job.config["task"] == OLD_TASK


def test_an_old_path_gives_a_record_no_more_than_the_new_one(tmp_path):
    with pytest.raises(ConfigError, match=r"research\.models\.gaussian_error\.GaussianTask, which is no task"):
        check_names({"task": OLD_TASK}, Origin(record=tmp_path / "result.json"))

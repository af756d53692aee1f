"""The scheduler that a job's model comes with, told from its files without importing a library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from research.errors import UserError
from research.models.inspect.families import tells_strength
from research.models.inspect.find_model import find_configured, find_pipeline, pipeline_class
from research.models.scheduler_config import scheduler_config
from research.solvers.names import OF_MODEL


def model_schedule(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The scheduler config of a job's model if it is on this disk, {} if it cannot be read, which is said when it is loaded; None
    for one of the hub, whether it is in the cache or not."""
    model = config["model"]
    if "_target_" in model:  # which only its code tells
        return None
    place = {key: model.get(key) for key in ("revision", "subfolder")}
    path, place = (model["config"], {}) if model.get("config") else (model["path"], place)
    try:
        found = find_pipeline(path, **place)
        if found.file is None and found.directory is None:
            return None
        schedule = scheduler_config(model["path"], model.get("config"), defaults=False, **place)
    except UserError:
        return {}
    return {} if schedule is None else schedule.config


def scheduler_class(config: Mapping[str, Any]) -> str:
    """The class of a job's scheduler; "model" where it is the model's own and that is not known yet."""
    name = str(config["scheduler"]["class_name"])
    if name != OF_MODEL:
        return name
    return str((model_schedule(config) or {}).get("_class_name", OF_MODEL))


def strength_rule(config: Mapping[str, Any]) -> dict[str, bool] | None:
    """How the steps of a strength are counted, as arguments of `research.strength.kept_steps`; None with parity for a model that
    is not on this disk, whose pipeline may round up or tell the scheduler the strength."""
    if not config["runtime"].get("parity", False):
        return {"parity": False}
    schedule = model_schedule(config)
    if schedule is None:
        return None
    name, task = str(schedule.get("_class_name")), str(config["task"].get("_target_")).rpartition(".")[2]
    flow = "FlowMatch" in name or name == "SCMScheduler" or schedule.get("prediction_type") == "flow_prediction"
    return {"parity": True, "flow": flow, "told": task == "ImageToImage" and tells_strength(_pipeline(config["model"]))}


def _pipeline(model: Mapping[str, Any]) -> str:
    """The pipeline's class that a job's model on this disk names."""
    try:
        found = find_configured(model)
        return "" if found.directory is None else str(pipeline_class(found.directory))
    except UserError:
        return ""

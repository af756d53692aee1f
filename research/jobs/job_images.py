"""What images a job makes: how many, with which seeds and prompts. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from research.errors import ConfigError
from research.jobs import targets
from research.models.inspect.families import PIPELINES
from research.models.inspect.find_model import find_configured, pipeline_class


def uses_prompts(config: Mapping[str, Any]) -> bool:
    """Whether the job's task is conditioned on its prompts: it takes some, and so does the model if the task can do without."""
    if not targets.takes(config["task"], "prompt"):
        return False
    if "_target_" in config["model"]:
        return True
    directory = find_configured(config["model"]).directory
    if directory is None or targets.needs(config["task"], "prompt"):
        return True
    return PIPELINES[pipeline_class(directory)] != "unet-pixel"


def makes_frames(config: Mapping[str, Any]) -> bool:
    """Whether the task names its own images: the frames of a path, with the prompts as its stations."""
    return "frames" in config["task"] and targets.takes(config["task"], "frames")


def keeps_batches(config: Mapping[str, Any]) -> bool:
    """Whether what is shown of all images needs more of a batch than its images: what hooks keep, or the noise of an inversion.

    Such a job is made whole by one process, from the start.
    """
    task = config["task"]
    return bool(config["hooks"]) or ("reconstruct" in task and targets.takes(task, "reconstruct"))


def image_count(config: Mapping[str, Any]) -> int:
    """How many images a job makes."""
    if makes_frames(config):
        return int(config["task"]["frames"])
    return int(config["images_per_prompt"]) * (len(config["prompts"]) if uses_prompts(config) else 1)


def check_frames(config: Mapping[str, Any]) -> None:
    """Check what goes with a task that names its own images.

    Raises:
        ConfigError: several images a prompt, or more prompts than frames.
    """
    if not makes_frames(config):
        return
    if config["images_per_prompt"] != 1:
        raise ConfigError(
            f"images_per_prompt: found {config['images_per_prompt']}; accepted with this task is 1, it makes task.frames images."
        )
    if uses_prompts(config) and len(config["prompts"]) > config["task"]["frames"]:
        raise ConfigError(
            f"task.frames: found {config['task']['frames']} for {len(config['prompts'])} prompts; accepted is at least one each."
        )


def seeds(config: Mapping[str, Any]) -> list[int]:
    """One seed an image."""
    count = image_count(config)
    if makes_frames(config):
        return [config["task"].get("start_seed", config["seed"])] * count
    if config.get("seeds"):  # one a prompt
        return [seed + k for seed in config["seeds"] for k in range(config["images_per_prompt"])]
    return [config["seed"] + k for k in range(count)]


def prompts(config: Mapping[str, Any]) -> list[str]:
    """One prompt an image, or none at all. A frame between two prompts has the nearer one."""
    if not uses_prompts(config):
        return []
    given = config["prompts"]
    if makes_frames(config):
        last = config["task"]["frames"] - 1
        return [given[round(k / last * (len(given) - 1))] for k in range(last + 1)]
    return [prompt for prompt in given for _ in range(config["images_per_prompt"])]


def task_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the runner gives the task besides its own settings."""
    if not uses_prompts(config):
        return {}
    return {"prompt": list(config["prompts"]) if makes_frames(config) else prompts(config)}

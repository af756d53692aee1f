"""What the tests share. Models are directories with random weights, saved by diffusers and built once a session."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# before diffusers, transformers and huggingface_hub are imported anywhere
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # processes that tests start need not compile the package again
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start: two workers of pytest share two cores

import pytest

if TYPE_CHECKING:  # nothing heavy is imported here: of `pytest -n 2`, the process that runs no test needs none of it
    from diffusers import (
        StableDiffusionDepth2ImgPipeline,
        StableDiffusionImg2ImgPipeline,
        StableDiffusionInpaintPipeline,
        StableDiffusionPipeline,
    )

    from research.models import BaseModel


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Where tests are collected they are run."""
    if getattr(session.config.option, "dist", "no") != "no" and not hasattr(session.config, "workerinput"):
        return
    import torch
    from support.libraries import choices_of_others_where_asked, timesteps_of_levels_once

    torch.set_num_threads(1)  # bit-equality is promised for one machine as it is; one thread is quickest at this size
    timesteps_of_levels_once()
    choices_of_others_where_asked()


def half_the_examples(items: list[pytest.Item]) -> None:
    from hypothesis import settings

    name = "_hypothesis_internal_use_settings"
    for test in {getattr(item, "obj", None) for item in items}:
        if (chosen := getattr(test, name, None)) is not None:
            setattr(test, name, settings(chosen, max_examples=(chosen.max_examples + 1) // 2))


def save_tiny_sd(directory: Path, **settings: Any) -> Path:
    from support.tiny_models import save_tiny_sd

    return save_tiny_sd(directory, **settings)


def save_tiny_pixel(directory: Path, **settings: Any) -> Path:
    from support.tiny_models import save_tiny_pixel

    return save_tiny_pixel(directory, **settings)


def loaded(directory: Path) -> BaseModel:
    from research import load_model

    return load_model(directory, dtype="float32", device="cpu")


def pipeline(kind: str, directory: Path) -> Any:
    import diffusers
    from support.tiny_models import quiet

    return quiet(getattr(diffusers, kind).from_pretrained(directory))


@pytest.hookimpl(tryfirst=True)  # before pytest looks at -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test with the mark ``spread(n)``, n of its cases run by default, evenly spread; the others are slow. Of the examples
    that hypothesis may try, a half is tried by default."""
    if "not slow" in config.option.markexpr:
        half_the_examples(items)
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("spread") and not item.get_closest_marker("slow"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for found in cases.values():
        mark = found[0].get_closest_marker("spread")
        assert mark is not None
        (count,) = mark.args
        chosen = {round(k * (len(found) - 1) / max(1, count - 1)) for k in range(count)}
        for place, item in enumerate(found):
            if place not in chosen:
                item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)  # before fixtures of any scope
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Reports have one figure, with the mark ``figures(n)`` the first n, with ``figures`` or ``slow`` all that they have."""
    from support.figures import draw_at_most

    mark = item.get_closest_marker("figures") or item.get_closest_marker("slow")
    draw_at_most(1 if mark is None else mark.args[0] if mark.args else None)


@pytest.fixture(scope="session")
def sd_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion directory, epsilon-prediction. Not to be changed: copy it."""
    return save_tiny_sd(tmp_path_factory.mktemp("models") / "tiny-sd")


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same kind of directory, with room for whole prompts: what jobs run on."""
    return save_tiny_sd(tmp_path_factory.mktemp("models") / "tiny", max_tokens=77)


@pytest.fixture(scope="session")
def sd_v_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with v-prediction."""
    return save_tiny_sd(tmp_path_factory.mktemp("models") / "tiny-sd-v", prediction_type="v_prediction", seed=1)


@pytest.fixture(scope="session")
def sd_odd_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another shape: three latent channels, VAE factor 4, 24 x 40 pixels, an attention mask in the text encoder."""
    return save_tiny_sd(tmp_path_factory.mktemp("models") / "tiny-sd-odd", seed=2, odd_shape=True)


@pytest.fixture(scope="session")
def inpaint_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion directory whose UNet takes nine channels."""
    return save_tiny_sd(tmp_path_factory.mktemp("models") / "tiny-inpaint", seed=3, role="inpaint")


@pytest.fixture(scope="session")
def depth_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion directory whose UNet takes five channels, with a depth estimator."""
    return save_tiny_sd(tmp_path_factory.mktemp("models") / "tiny-depth", seed=4, role="depth")


@pytest.fixture(scope="session")
def pixel_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DDPMPipeline directory of 8 x 8 colour pixels."""
    return save_tiny_pixel(tmp_path_factory.mktemp("models") / "tiny-ddpm")


@pytest.fixture(scope="session")
def grey_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DDPMPipeline directory of 8 x 8 grey pixels."""
    return save_tiny_pixel(tmp_path_factory.mktemp("models") / "tiny-grey", channels=1)


@pytest.fixture(scope="session")
def class_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DDPMPipeline directory with five classes."""
    return save_tiny_pixel(tmp_path_factory.mktemp("models") / "tiny-classes", classes=5)


@pytest.fixture(scope="session")
def sd(sd_directory: Path) -> BaseModel:
    return loaded(sd_directory)


@pytest.fixture(scope="session")
def sd_v(sd_v_directory: Path) -> BaseModel:
    return loaded(sd_v_directory)


@pytest.fixture(scope="session")
def sd_odd(sd_odd_directory: Path) -> BaseModel:
    return loaded(sd_odd_directory)


@pytest.fixture(scope="session")
def sd_inpaint(inpaint_directory: Path) -> BaseModel:
    return loaded(inpaint_directory)


@pytest.fixture(scope="session")
def sd_depth(depth_directory: Path) -> BaseModel:
    return loaded(depth_directory)


@pytest.fixture(scope="session")
def pixel(pixel_directory: Path) -> BaseModel:
    return loaded(pixel_directory)


@pytest.fixture(scope="session")
def class_model(class_directory: Path) -> BaseModel:
    return loaded(class_directory)


@pytest.fixture(scope="session")
def sd_pipe(sd_directory: Path) -> StableDiffusionPipeline:
    return pipeline("StableDiffusionPipeline", sd_directory)


@pytest.fixture(scope="session")
def sd_v_pipe(sd_v_directory: Path) -> StableDiffusionPipeline:
    return pipeline("StableDiffusionPipeline", sd_v_directory)


@pytest.fixture(scope="session")
def sd_odd_pipe(sd_odd_directory: Path) -> StableDiffusionPipeline:
    return pipeline("StableDiffusionPipeline", sd_odd_directory)


@pytest.fixture(scope="session")
def img2img_pipe(sd_directory: Path) -> StableDiffusionImg2ImgPipeline:
    return pipeline("StableDiffusionImg2ImgPipeline", sd_directory)


@pytest.fixture(scope="session")
def inpaint_pipe(sd_directory: Path) -> StableDiffusionInpaintPipeline:
    """On a UNet of four channels."""
    return pipeline("StableDiffusionInpaintPipeline", sd_directory)


@pytest.fixture(scope="session")
def inpaint9_pipe(inpaint_directory: Path) -> StableDiffusionInpaintPipeline:
    """On a UNet of nine channels."""
    return pipeline("StableDiffusionInpaintPipeline", inpaint_directory)


@pytest.fixture(scope="session")
def depth_pipe(depth_directory: Path) -> StableDiffusionDepth2ImgPipeline:
    return pipeline("StableDiffusionDepth2ImgPipeline", depth_directory)


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    """Commands set up logging for their process, and linters switch off what they do not know: a test leaves none of it."""
    before = [(log, log.level, log.disabled, log.propagate, list(log.handlers)) for log in _own_loggers()]
    yield
    known = {log for log, *_ in before}
    for log, level, disabled, propagate, handlers in before:
        if log.level != level:  # setting it, even to what it was, empties the caches of all loggers
            log.setLevel(level)
        log.disabled, log.propagate, log.handlers[:] = disabled, propagate, handlers
    for log in _own_loggers():
        log.disabled = log.disabled and log in known


def _own_loggers() -> list[logging.Logger]:
    found = logging.root.manager.loggerDict.items()
    return [log for name, log in found if name.split(".")[0] == "research" and isinstance(log, logging.Logger)]


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a model directory to where it may be broken."""

    def copy(directory: Path, name: str = "copy") -> Path:
        return Path(shutil.copytree(directory, tmp_path / name))

    return copy


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Any attempt to reach another machine fails at once, and is listed."""
    attempts: list[object] = []

    def refuse(*args: object, **kwargs: object):
        attempts.append(args[1:] or args)
        raise OSError("the network is blocked in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts

"""Directories of the families, built once a session. Not to be changed: copy them."""

from __future__ import annotations

from pathlib import Path

import pytest

from research.testing import random_pipelines
from research.testing.random_pipelines import save_lcm, save_sd3, save_sdxl


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sdxl(tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="session")
def sdxl_refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sdxl(tmp_path_factory.mktemp("models") / "sdxl-refiner", refiner=True)


@pytest.fixture(scope="session")
def sdxl_inpaint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its UNet takes nine channels."""
    return save_sdxl(tmp_path_factory.mktemp("models") / "sdxl-inpaint", channels=9)


@pytest.fixture(scope="session")
def sdxl_distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its UNet embeds the guidance scale; its latents have a mean and a standard deviation."""
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.8, 1.1, 2.0]}
    return save_sdxl(tmp_path_factory.mktemp("models") / "sdxl-distilled", distilled=True, **statistics)


@pytest.fixture(scope="session")
def lcm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lcm(tmp_path_factory.mktemp("models") / "lcm")


@pytest.fixture(scope="session")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd3(tmp_path_factory.mktemp("models") / "sd3")


@pytest.fixture(scope="session")
def sd35(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layers of 3.5 medium, no T5, and a shift by the picture's size."""
    return save_sd3(tmp_path_factory.mktemp("models") / "sd35", t5=False, medium=True, use_dynamic_shifting=True)


@pytest.fixture(scope="session")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_pipelines.save_flux(tmp_path_factory.mktemp("models") / "flux")


@pytest.fixture(scope="session")
def flux_schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_pipelines.save_flux(tmp_path_factory.mktemp("models") / "flux-schnell", schnell=True)


@pytest.fixture(scope="session")
def chroma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_pipelines.save_chroma(tmp_path_factory.mktemp("models") / "chroma")


@pytest.fixture(scope="session")
def qwen_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_pipelines.save_qwen_image(tmp_path_factory.mktemp("models") / "qwen-image")

"""Offloading, quantisation and a VAE that works by pieces. What a GPU does here is done with the CPU as the device."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from research import LoopSampler, load_model
from research.errors import ConfigError
from research.guidance import CFG
from research.models.offload import offload, offload_text_encoders
from research.tasks import ImageToImage, TextToImage
from research.testing import random_pipelines


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_pipelines.save_sd3(tmp_path_factory.mktemp("memory") / "sd3")


def small(directory: Path, **settings: Any) -> Any:
    return load_model(directory, dtype="float32", device="cpu", **settings)


def made(model: Any, prompt: str = "a fox") -> Any:
    return LoopSampler(model, guidance=CFG(3.0)).sample(TextToImage(prompt), seeds=[0, 1], steps=2)


@pytest.mark.parametrize("how", ["model", "sequential", "text encoders"])
@pytest.mark.parametrize("name", ["sd_directory", "sd3"])
@pytest.mark.spread(1)
def test_offloaded_parts_make_the_same_pictures(name: str, how: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(name)
    plain, model = small(directory), small(directory)
    cpu = torch.device("cpu")
    if how == "text encoders":
        offload_text_encoders(model, cpu)
    else:
        offload(model, how, cpu)
    assert model.device == cpu
    assert (next(model.network.parameters()).device.type == "meta") == (how == "sequential")
    for prompt in ("a fox", "a cat"):  # other texts are encoded after the network was at work
        one, other = made(plain, prompt), made(model, prompt)
        assert torch.equal(one.latents, other.latents)
        assert [a.tobytes() for a in one.images] == [b.tobytes() for b in other.images]
    task = ImageToImage("a fox", one.images[0], strength=0.6)
    first, second = (LoopSampler(each).sample(task, seeds=[0], steps=4).latents for each in (plain, model))
    assert torch.equal(first, second)
    with pytest.raises(ConfigError, match="stays on cpu"):
        model.to(torch.device("meta"))


def test_weights_in_eight_bits(sd3: Path) -> None:
    plain, model = small(sd3), small(sd3, quantize="fp8")
    assert model.dtype is torch.float32
    assert any(p.dtype is torch.float8_e4m3fn for p in model.network.parameters())
    one, other = made(plain).latents, made(model).latents
    assert not torch.equal(one, other)
    assert float((one - other).abs().mean()) < 0.5 * float(one.std())
    with pytest.raises(ConfigError, match=r"^guidance.model: found null with model.offload or model.quantize"):
        model.second(None, 0.1)


def test_the_vae_by_pieces(sd_directory: Path) -> None:
    plain, model = small(sd_directory), small(sd_directory, vae_slicing=True, vae_tiling=True, drop_text_encoders=True)
    assert model.vae.use_slicing
    assert model.vae.use_tiling
    torch.testing.assert_close(made(plain).latents, made(model).latents)
    with pytest.raises(ConfigError, match=r"^model.vae_slicing: found true with parity"):
        LoopSampler(model, parity=True)


def test_refused(sd_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str, **settings: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            small(sd_directory, **settings)

    refused("^model.offload: found model; the model runs on the CPU", offload="model")
    refused("^model.offload: found 'all'", offload="all")
    refused("^model.quantize: found 'int4'", quantize="int4")
    refused("^model.vae_tiling: found 'yes'", vae_tiling="yes")
    refused("^model.compile: found true with model.quantize=fp8", quantize="fp8", compile=True)
    real = importlib.util.find_spec
    absent = ("torchao", "bitsandbytes")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in absent else real(name, *a))
    refused("^model.quantize: found int8, for which torchao is not installed; accepted: none, fp8", quantize="int8")
    refused("^model.quantize: found nf4, for which bitsandbytes is not installed", quantize="nf4")

"""`model.compile` and `model.channels_last`: the same pictures, what compiling cost, and what stands in its way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from research import LoopSampler, load_model
from research.errors import ConfigError
from research.guidance import CFG, PAG
from research.models import compiled
from research.tasks import TextToImage


def latents_of(model, guidance):
    sampler = LoopSampler(model, guidance=guidance)
    return sampler.sample(TextToImage("a cat"), seeds=[1], steps=3)


def small(directory: Path, **settings):
    return load_model(directory, dtype="float32", device="cpu", **settings)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_pictures(sd_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by torch and not handed to a code generator, which takes half a minute; what is around it is the same."""
    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: real(module, backend="eager"))
    torch.compiler.reset()
    model = small(sd_directory, compile=True, channels_last=True)
    assert model.network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    first = latents_of(model, CFG(3.0))
    assert first.timings["compile"] > 0
    assert first.timings["denoise"] > 0
    plain = latents_of(small(sd_directory), CFG(3.0))
    assert "compile" not in plain.timings
    torch.testing.assert_close(first.latents, plain.latents, atol=1e-4, rtol=1e-4)
    assert "compile" not in latents_of(model, CFG(3.0)).timings
    # patched layers are not what was compiled
    patched = latents_of(model, PAG(3.0)).latents
    torch.testing.assert_close(patched, latents_of(small(sd_directory), PAG(3.0)).latents, atol=1e-4, rtol=1e-4)
    assert compiled.is_compiled(model.second(None, 0.2).network)


def test_no_compiler(sd_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def missing() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(ConfigError, match=r"model.compile: found true, and there is no C\+\+ compiler"):
        small(sd_directory, compile=True)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "no-such-compiler")
    with pytest.raises(ConfigError, match="no-such-compiler is not there"):
        small(sd_directory, compile=True)


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize("key", ["compile", "channels_last"])
def test_refused(sd_directory: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"model.{key}: found 'yes'; accepted: true, false"):
        small(sd_directory, **{key: "yes"})
    with pytest.raises(ConfigError, match=f"model.{key}: found true with parity"):
        LoopSampler(small(sd_directory, **{key: True}), parity=True)

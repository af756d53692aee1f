"""Guidance that patches layers, on small models of all families: what works, and what is refused by a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from research import LoopSampler, load_model
from research.errors import ConfigError
from research.guidance import CFG, NAG
from research.tasks import TextToImage
from research.testing.random_pipelines import BUILDERS

pytestmark = pytest.mark.spread(1)
TEXT = [name for name in BUILDERS if name not in ("dit", "lumina2")]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    kept: dict[str, Any] = {}

    def model(name: str) -> Any:
        if name not in kept:
            folder: Path = tmp_path_factory.mktemp("models") / "m"
            kept.clear()
            kept[name] = load_model(BUILDERS[name](folder), dtype="float32", device="cpu")
        return kept[name]

    return model


def latents(model: Any, guidance: Any, negative: str | None = None, seeds: tuple[int, ...] = (1, 2)) -> torch.Tensor:
    side = 64 if model.family == "sana" else 16
    task = TextToImage("a cat", negative, side, side)
    return LoopSampler(model, guidance=guidance).sample(task, seeds=list(seeds), steps=2).latents.float()


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", TEXT)
def test_nag_sees_the_negative_prompt_as_it_sees_the_prompt(name: str, model_of: Any) -> None:
    """With the prompt for a negative one nothing is led anywhere: texts, their masks and their places are cut rightly."""
    model = model_of(name)
    plain = latents(model, None)
    if not name.startswith("sana"):  # whose instruction stands before prompts alone
        assert far(latents(model, NAG(5.0), "a cat"), plain) < 1e-5
    guided = latents(model, NAG(5.0), "a dog on a hill")
    assert far(guided, plain) > 1e-4
    assert far(guided, latents(model, NAG(5.0), "red")) > 1e-4
    assert far(latents(model, NAG(5.0), "red", seeds=(2,))[0], latents(model, NAG(5.0), "red")[1]) < 1e-5
    assert torch.isfinite(latents(model, NAG(5.0, base=CFG(3.0)), "red")).all()


@pytest.mark.slow
def test_nag_is_refused_where_texts_are_mixed_before(model_of: Any) -> None:
    with pytest.raises(ConfigError, match=r"NAG works where .*; m has no such layer"):
        LoopSampler(model_of("lumina2"), guidance=NAG(5.0))

"""Hooks on every family: each works, or is refused by name, as the table in docs/reference/hooks.md says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from research import LoopSampler, load_model
from research.errors import ConfigError
from research.guidance import CFG, ICG
from research.hooks import Differential, DynamicPrompt, FeatureCache, Preview
from research.models import BaseModel
from research.tasks import ImageToImage, Inpaint, Interpolation, TextToImage, Unconditional
from research.testing.random_pipelines import BUILDERS

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "hooks.md"
PROMPT, OTHER = "a red fox", "a cat on a big mat"
COLUMNS = [
    "Inpaint",
    "Differential",
    "Preview",
    "DynamicPrompt",
    "weights of words",
    "ICG",
    "Interpolation",
    "FeatureCache",
]


def table() -> dict[str, list[str]]:
    """Rows of the page by the names of `BUILDERS`."""
    lines = [
        line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if " | works" in line
    ]
    return {name: cells for names, *cells in lines for name in names.split(", ")}


def cases(model: BaseModel) -> dict[str, Callable[[], Any]]:
    side = 2 * max(model.size_multiple, 8)
    size = () if model.n_classes else (side, side)
    white, black = Image.new("RGB", (side, side), (200, 30, 90)), Image.new("L", (side, side))
    black.paste(255, (side // 2, 0, side, side))
    distilled = model.distilled_guidance is not None

    def run(*hooks: Any, task: Any = None, guidance: Any = None, **more: Any) -> torch.Tensor:
        task = task or (Unconditional(class_label=1) if model.n_classes else TextToImage(PROMPT, None, *size))
        how = guidance or (None if distilled else CFG(3.0))
        seeds = None if isinstance(task, Interpolation) else [0]
        return (
            LoopSampler(model, more.get("scheduler", "model"), guidance=how, hooks=hooks)
            .sample(task, seeds=seeds, steps=2)
            .latents
        )

    shown = {"weight": [[0.1] * model.latent_shape(None, None)[0]] * 3, "bias": [0.0] * 3}
    swapped = [{"prompt": PROMPT, "until": 0.5}, {"prompt": OTHER}]
    return {
        "plain": run,
        "Inpaint": lambda: run(task=Inpaint(PROMPT, white, black, 1.0, None, *size)),
        "Differential": lambda: run(Differential(white, black), task=ImageToImage(PROMPT, white, 1.0, None, *size)),
        "Preview": lambda: run(Preview(projection=shown)),
        "DynamicPrompt": lambda: run(DynamicPrompt(prompts=swapped, blend=True)),
        "weights of words": lambda: run(DynamicPrompt(weights={"fox": 1.5})),
        "ICG": lambda: run(guidance=ICG(3.0)),
        "Interpolation": lambda: run(task=Interpolation(0, 1, 3, [PROMPT, OTHER], None, *size), scheduler="euler"),
        "FeatureCache": lambda: run(FeatureCache(every=2)),
    }


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_works_or_is_refused_as_the_page_says(name: str, tmp_path: Path) -> None:
    model = load_model(BUILDERS[name](tmp_path / "model"), dtype="float32", device="cpu")
    runs = cases(model)
    plain = runs["plain"]()
    found = []
    for column in COLUMNS:
        try:
            latents = runs[column]()
        except ConfigError:
            found.append("refused")
            continue
        assert latents.isfinite().all(), column
        if latents.shape == plain.shape:  # it does what it is there to do, and a preview nothing
            assert torch.equal(latents, plain) == (column == "Preview"), column
        found.append("works")
    assert found == table()[name]


def test_the_page_has_every_family() -> None:
    assert sorted(table()) == sorted(BUILDERS)

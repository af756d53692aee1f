"""Guidance on every family: each works, or is refused by a reason, as the table in docs/reference/guidance.md says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from research import LoopSampler, load_model
from research.errors import ConfigError
from research.guidance import (
    CFG,
    FDG,
    NAG,
    PAG,
    PLADIS,
    SAG,
    SEG,
    SLG,
    SMCCFG,
    SWG,
    TPG,
    TSG,
    CharacteristicGuidance,
    FeedbackGuidance,
    RectifiedCFGPlusPlus,
)
from research.tasks import TextToImage, Unconditional
from research.testing.random_pipelines import BUILDERS

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "guidance.md"
COLUMNS = {
    "combined": (
        lambda: CFG(3.0),
        lambda: FDG(3.0, 2.0),
        lambda: TSG(3.0),
        lambda: SMCCFG(3.0, gain=1e-5),  # its sign makes 2 * gain of a rounding that differs between batches
        lambda: FeedbackGuidance(5.0),
        lambda: RectifiedCFGPlusPlus(2.0),
        lambda: CharacteristicGuidance(5.0, iterations=4),
    ),
    "SWG": (lambda: SWG(0.5),),
    "PAG": (lambda: PAG(2.0),),
    "SEG": (lambda: SEG(2.0),),
    "SLG": (lambda: SLG(2.0),),
    "TPG": (lambda: TPG(1.0),),
    "SAG": (lambda: SAG(0.75),),
    "PLADIS": (lambda: PLADIS(1.5),),
    "NAG": (lambda: NAG(5.0),),
}


def table() -> dict[str, list[str]]:
    """Rows of the page by the names of `BUILDERS`."""
    lines = [
        line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if " | works" in line
    ]
    return {name: cells for names, *cells in lines for name in names.split(", ")}


def latents(model: Any, guidance: Any, seeds: tuple[int, ...] = (1, 2)) -> torch.Tensor:
    prompt = TextToImage("a cat", "red" if isinstance(guidance, NAG) else None, 64, 64)
    task = Unconditional(1) if model.n_classes else prompt
    return LoopSampler(model, guidance=guidance).sample(task, seeds=list(seeds), steps=2).latents.float()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_works_or_is_refused_as_the_page_says(name: str, tmp_path: Path) -> None:
    model = load_model(BUILDERS[name](tmp_path / "model"), dtype="float32", device="cpu")
    plain = latents(model, None)
    found = []
    for column, methods in COLUMNS.items():
        verdicts = set()
        for make in methods:
            try:
                both = latents(model, make())
            except ConfigError:
                verdicts.add("refused")
                continue
            verdicts.add("works")
            assert both.isfinite().all(), column
            assert not torch.equal(both, plain), column
            alone = latents(model, make(), (2,))[0]
            assert (alone - both[1]).norm() < 1e-4 * plain.norm(), column
        assert len(verdicts) == 1, column
        found += verdicts
    assert found == table()[name]


def test_the_page_has_every_family() -> None:
    assert sorted(table()) == sorted(BUILDERS)

"""No letter of a prompt turns into an empty box."""

from __future__ import annotations

import pytest

from research.report.contact_sheet import font


@pytest.mark.parametrize("text", ["pizza", "5 ± 1 · 3…", "café", "naïve", "–", "2×2", "Ωμ", "яблоко"])
def test_every_glyph_is_there(text: str) -> None:
    drawn = font(text, 20)
    missing = bytes(drawn.getmask("\uffff"))
    assert all(bytes(drawn.getmask(letter)) != missing for letter in text if letter != " ")

"""docs/reference/inputs.md is made of the marks ``brought`` of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.inputs import PAGE, Row, page, rows


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(rows()), "python -m tools.inputs writes it"


def test_marks_of_tests_and_of_cases_are_read(tmp_path: Path):
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_a.py").write_text(
        "@pytest.mark.brought('Pictures', 'a picture', 'accepted', '')\ndef test_a(): ...\n"
        "@pytest.mark.parametrize('x', [pytest.param(1, marks=mark.brought('Pictures', 'none', 'refused', 'is | none'))])\n"
        "def test_b(x): ...\n"
    )
    found = rows(folder)
    assert found == [
        Row("Pictures", "a picture", "accepted", "", "tests/test_a.py"),
        Row("Pictures", "none", "refused", "is | none", "tests/test_a.py"),
    ]
    assert "| none | refused | is \\| none |" in page(found)


@pytest.mark.parametrize(
    "mark", ["'Pictures', 'a', 'taken', ''", "'Pictures', 'a', 'refused'", "'Pictures', x, 'refused', ''"]
)
def test_a_mark_that_is_not_whole_is_an_error(mark: str, tmp_path: Path):
    (tmp_path / "test_a.py").write_text(f"@pytest.mark.brought({mark})\ndef test_a(): ...\n")
    with pytest.raises(ValueError, match=r"test_a\.py:1: found"):
        rows(tmp_path)

"""Writes what is accepted, what is repaired and what is refused of what people bring: `python -m tools.inputs`.

Each row of docs/reference/inputs.md is a mark of a test that holds it, on the test or on one of its cases::

    @pytest.mark.brought("Directories", "weights in shards, with an index", "accepted", "")

its section, what is brought, one of `OUTCOMES`, and what is said (or, of a refusal, why). Marks are read; no test is imported.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "inputs.md"
OUTCOMES = ("accepted", "repaired", "refused")
# in their order on the page; a section that is not here comes behind them
SECTIONS = (
    "Directories",
    "Hub ids and caches",
    "Checkpoint files",
    "Pictures",
    "Prompts",
    "Configs and environment",
    "Folders of results",
)
_HEAD = """# What people bring

What is accepted as it is, what is repaired (and said so), and what is refused, in one line that names the file or key. Written by
`python -m tools.inputs` from the marks of the tests that hold each row (`pytest.mark.brought`).
"""


@dataclass(frozen=True)
class Row:
    """One thing that people bring, and what becomes of it."""

    section: str
    brought: str
    outcome: str
    said: str
    test: str


def rows(folder: Path = ROOT / "tests") -> list[Row]:
    """The marks of all tests.

    Raises:
        ValueError: a mark is not four texts, or its outcome is none.
    """
    return [row for file in sorted(folder.rglob("*.py")) for row in _rows_of(file, folder)]


def _rows_of(file: Path, folder: Path) -> Iterator[Row]:
    text = file.read_text(encoding="utf-8")
    if "mark.brought(" not in text:
        return
    where = file.relative_to(folder.parent).as_posix()
    for statement in ast.parse(text).body:
        for node in ast.walk(statement):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.brought")):
                continue
            said = [each.value if isinstance(each, ast.Constant) else None for each in node.args]
            if len(said) != 4 or not all(isinstance(each, str) for each in said) or said[2] not in OUTCOMES:
                raise ValueError(
                    f"{where}:{node.lineno}: found {ast.unparse(node)[:120]}; accepted are a section, what is brought, "
                    f"{' | '.join(OUTCOMES)}, and what is said."
                )
            section, brought, outcome, why = map(str, said)
            yield Row(section, brought, outcome, why, where)


def page(found: list[Row]) -> str:
    """The page of these rows."""
    named = list(dict.fromkeys(row.section for row in found))
    ordered = [name for name in SECTIONS if name in named] + [name for name in named if name not in SECTIONS]
    parts = [_HEAD]
    for section in ordered:
        inside = [row for row in found if row.section == section]
        lines = [f"## {section}", "", "| brought | | said, or why |", "|---|---|---|"]
        for outcome in OUTCOMES:
            cells = dict.fromkeys((row.brought, row.said) for row in inside if row.outcome == outcome)
            lines += [f"| {_cell(brought)} | {outcome} | {_cell(said)} |" for brought, said in cells]
        tests = ", ".join(f"`{test}`" for test in dict.fromkeys(row.test for row in inside))
        parts.append("\n".join([*lines, "", f"Held by {tests}.", ""]))
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def main() -> None:
    argparse.ArgumentParser(prog="python -m tools.inputs", description=__doc__).parse_args()
    PAGE.write_text(page(rows()), encoding="utf-8")


if __name__ == "__main__":
    main()

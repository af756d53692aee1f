"""The notebooks run as they stand, and what is kept of them can be read on the web."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.notebooks import LARGEST, NOTEBOOKS, executed

ABSOLUTE = re.compile(r"(?<![\w.<:/\\])/(?:[\w.-]+/){2,}")
FILES = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_notebook_runs(file: Path, tmp_path: Path) -> None:
    for name in ("nbclient", "ipykernel", "pandas"):
        pytest.importorskip(name)
    executed(file, tmp_path)


# two cells of a sweep with a class of a notebook, and the first of them with another body: as quick as a kernel starts
CELLS = [
    """import research
from research import Hook
class Mine(Hook):
    def post_step(self, state):
        state.x = state.x * 1.0
""",
    """small = dict(steps=1, prompts="fox", metrics="none", tracker="none", progress=False, report=False)
first = research.sweep(hooks=Mine(), **small, settings={"runtime.threads": 1})
first""",
    """class Mine(Hook):
    def post_step(self, state):
        state.x = state.x * 0.5
""",
    """second = research.sweep(hooks=Mine(), **small, settings={"runtime.threads": 1})
assert second[0].id != first[0].id
old = type(first)
class Mine(Hook):
    def post_step(self, state):
        state.x = state.x * 1.0  # as it was
again = research.sweep(hooks=Mine(), **small, settings={"runtime.threads": 1})
assert again[0].id == first[0].id
print("as it should be")""",
]


@pytest.mark.slow
def test_a_class_of_a_cell_is_known_by_the_cell_where_it_was_defined_last(tmp_path: Path) -> None:
    for name in ("nbclient", "ipykernel"):
        pytest.importorskip(name)
    import nbformat

    cells = [nbformat.v4.new_code_cell(text) for text in CELLS]
    file = tmp_path / "short.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), file)
    made = executed(file, tmp_path)
    shown = made.cells[1].outputs[-1]["data"]["text/html"]
    assert "<img" in shown
    assert "as it should be" in made.cells[3].outputs[-1]["text"]
    assert len(list(tmp_path.glob("outputs/default/*/result.json"))) == 2


def test_the_notebooks_are_kept_with_small_outputs() -> None:
    import json

    assert len(FILES) == 4
    for file in FILES:
        assert file.stat().st_size <= LARGEST
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"]), file
        for cell in code:
            assert all(output["output_type"] != "error" for output in cell["outputs"]), file
            for output in cell["outputs"]:
                read = {kind: data for kind, data in output.get("data", {}).items() if not kind.startswith("image/")}
                text = re.sub(r"base64,[^\"'\\]+", "", json.dumps([read, output.get("text")]))
                assert not ABSOLUTE.search(text), "a path of the machine that ran it"

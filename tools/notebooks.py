"""Runs the notebooks and keeps their outputs: ``python -m tools.notebooks [NAME ...]``.

Each runs in an empty folder with the repository on its path. What is no output for a reader is left out: bars, warnings of
libraries, times of execution.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
LARGEST = 400_000  # bytes of a notebook with its outputs


def executed(file: Path, folder: Path, timeout: float = 1800.0) -> Any:
    """A notebook with the outputs of running it in a folder.

    Args:
        timeout: seconds of a cell.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(file, as_version=4)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment)
    return notebook


def tidied(notebook: Any) -> Any:
    """The same less what says nothing to a reader, and differs from run to run without need."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [
            output for output in cell.outputs if not (output.output_type == "stream" and output.name == "stderr")
        ]
        for output in cell.outputs:
            output.get("metadata", {}).pop("image/png", None)
            if "text/html" in output.get("data", {}):
                output.data["text/html"] = re.sub(
                    r"<style scoped>.*?</style>", "", output.data["text/html"], flags=re.DOTALL
                )
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main(names: list[str]) -> int:
    """Run the notebooks of these names, or all, and write them with their outputs. Returns 1 if one is too large."""
    import nbformat

    worst = 0
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        if names and file.stem not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            notebook = tidied(executed(file, Path(folder)))
        nbformat.write(notebook, file)
        size = file.stat().st_size
        print(f"{file.relative_to(ROOT)}: {size:,} bytes")
        worst = max(worst, int(size > LARGEST))
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The distribution: built from what a clone holds, and installed where nothing else is."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from research.zoo import zoo_names

ROOT = Path(__file__).parent.parent
LIMIT = 1800


def run(*words: str | Path, folder: Path) -> str:
    done = subprocess.run([str(word) for word in words], cwd=folder, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made of it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "venv", folder / "tools", folder=folder)
    python = folder / "tools/bin/python"
    run(python, "-m", "pip", "install", "--quiet", "build", folder=folder)
    run(python, "-m", "build", "--outdir", folder / "out", ROOT, folder=folder)
    (sdist,), (wheel,) = (folder / "out").glob("*.tar.gz"), (folder / "out").glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_what_is_in_them(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    for wanted in ("research/py.typed", "research/conf/config.yaml", "research/report/templates/report.html"):
        assert wanted in names
    assert {
        f"research/zoo/{name}/model_index.json"
        for name in zoo_names()
        if (ROOT / f"research/zoo/{name}/model_index.json").exists()
    } <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "tools/", "docs/")) or "__pycache__" in name]
    with tarfile.open(sdist) as packed:
        kept = {name.partition("/")[2] for name in packed.getnames()}
    assert {"README.md", "CHANGELOG.md", "CITATION.cff", "constraints.txt", "Makefile", "tests/test_package.py"} <= kept


@pytest.mark.slow
def test_it_works_where_nothing_else_is(built: tuple[Path, Path], tmp_path: Path) -> None:
    """With what it depends on, as `constraints.txt` has it, and nothing of the clone in sight."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", folder=tmp_path)
    binaries = tmp_path / "venv/bin"
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    run(binaries / "python", "-m", "pip", "install", "--quiet", torch, folder=tmp_path)
    constraints = ROOT / "constraints.txt"
    run(binaries / "python", "-m", "pip", "install", "--quiet", "-c", constraints, built[1], folder=tmp_path)
    assert "installed" not in run(binaries / "python", "-m", "pip", "check", folder=tmp_path)
    few = ("steps=2", "images_per_prompt=2", "prompts=[pizza on a blue background]", "tracker=none")
    run(
        binaries / "research",
        "-m",
        "scheduler=ddim,euler",
        "metrics=[clip_score,fid]",
        *few,
        "sweep_name=here",
        folder=tmp_path,
    )
    assert (tmp_path / "outputs/here/report.html").is_file()
    run(binaries / "research-inspect", "emoji", folder=tmp_path)
    run(binaries / "research-schedule", "scheduler=unipc", "steps=4", "--table", folder=tmp_path)
    where = run(binaries / "python", "-c", "import research; print(research.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path)

"""The worked example of a study of one's own, `examples/my_study`, copied and installed as its README says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from research.cli import run

STUDY = Path(__file__).parent.parent / "examples" / "my_study"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    made = shutil.ignore_patterns("outputs", "*.egg-info", "__pycache__", "build")
    return Path(shutil.copytree(STUDY, tmp_path / "my_study", ignore=made))


def test_its_question_composes_without_an_installation(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(study)
    monkeypatch.syspath_prepend(str(study))
    assert run(["--config-dir", "my_study/conf", "experiment=capped", "--plan"]) == 0
    said = capsys.readouterr().out
    assert "6 jobs: 6 waiting" in said
    assert "capped" in said


@pytest.mark.slow
def test_the_study_does_what_its_readme_says(study: Path, tmp_path: Path) -> None:
    """Every command of the README in an environment of its own that sees the packages of this one, and from another folder."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=300)
    python = venv / "bin/python"
    site = sysconfig.get_path("purelib", vars={"base": str(venv)})
    Path(site, "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    for entry in entry_points(group="console_scripts"):
        if entry.name.startswith("research"):  # as pip writes them
            script = venv / "bin" / entry.name
            script.write_text(
                f"#!{python}\nfrom {entry.module} import {entry.attr}\nraise SystemExit({entry.attr}())\n"
            )
            script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)

    def call(*words: str | Path, folder: Path = study) -> str:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600, env=environment)
        assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    install, use = (
        block
        for block in re.findall(r"(?:^    .+\n)+", (study / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert "pip install --no-deps -e ." in install
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ".")
    assert "CappedCFG" in call("make", "run")
    call("make", "report")
    assert "CappedCFG" in (study / "outputs/capped/compare.md").read_text(encoding="utf-8")
    assert (study / "outputs/capped/report.html").stat().st_size > 0
    assert "6 jobs: 6 done" in call("research", "experiment=capped", "--plan")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for line in use.splitlines():
        words = shlex.split(line, comments=True)
        away = words[0] == "research" and "experiment=capped" not in words
        if words[0] == "research" and not away and "--plan" not in words:
            words.append("--plan")
        said = call(*words, folder=elsewhere if away else study)
        assert "cannot run" not in said
    assert len(list(elsewhere.glob("outputs/default/*/images/*.png"))) == 1
    shutil.rmtree(study / "outputs")
    told = call("research-check", "guidance=capped", folder=elsewhere)
    assert "rules hold" in told

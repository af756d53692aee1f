"""The command as a user meets it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import research
from research.cli import run

IMPORTS_NO_TORCH = """
import sys
from research.cli import run
code = run(sys.argv[1:])
heavy = [name for name in ("torch", "diffusers", "transformers", "wandb", "matplotlib") if name in sys.modules]
assert not heavy, heavy
sys.exit(code)
"""


def light(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command, which fails if it imports anything heavy."""
    environment = {**os.environ, "PYTHONPATH": str(Path(research.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", IMPORTS_NO_TORCH, *argv],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["--help"],
            [
                "scheduler: custom, ddim",
                "guidance: apg, autoguidance, cfg,",
                "guidance/modifiers: epsilon_scaling, higs, interval, mimic_threshold, momentum, none",
                "scale: 3.0",
                "EXAMPLES",
            ],
        ),
        (["--cfg", "job", "steps=7"], ["steps: 7", "class_name: DDIMScheduler"]),
        (["-sc", "install=bash"], ["complete -o nospace"]),
        (["--info", "defaults"], ["scheduler/ddim"]),
        (["--version"], [research.__version__]),
        (["--hydra-help"], ["hydra/launcher"]),
    ],
    ids=lambda value: " ".join(value),
)
@pytest.mark.spread(1)
def test_showing_needs_no_torch(argv: list[str], expected: list[str], tmp_path: Path) -> None:
    done = light(*argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in expected:
        assert text in done.stdout
    assert not list(tmp_path.iterdir())


def test_help_answers_within_a_second(tmp_path: Path) -> None:
    spans = []
    for _ in range(3):
        # processor time, which is what the clock on the wall shows on a machine that is not busy with other things
        before = os.times()
        light("--help", cwd=tmp_path)
        after = os.times()
        spans.append(after.children_user + after.children_system - before.children_user - before.children_system)
        if spans[-1] < 1.0:
            return
    pytest.fail(f"{spans} s")


@pytest.mark.slow
def test_python_dash_m_is_the_command(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(research.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "research", "steps=0"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2
    assert done.stderr == "error: steps: found 0; accepted is a whole number from 1.\n"
    assert done.stdout == ""


def test_choices_of_the_users_own_folder_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine" / "guidance").mkdir(parents=True)
    (tmp_path / "mine" / "guidance" / "gentle.yaml").write_text("_target_: research.guidance.CFG\nscale: 1.5\n")
    assert run(["--config-dir", str(tmp_path / "mine"), "--help"]) == 0
    assert "fdg, feedback, gentle, icg" in capsys.readouterr().out
    assert run(["--config-dir", str(tmp_path / "mine"), "--cfg", "job", "guidance=gentle"]) == 0
    assert "scale: 1.5" in capsys.readouterr().out


def test_flags_may_stand_between_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["steps=3", "--cfg", "job", "seed=4"]) == 0
    assert "steps: 3\nseed: 4" in capsys.readouterr().out


def test_prompts_survive_as_they_were_written(capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["a fox, in snow", 'the "quoted" one', "x = 1: y", "été à Zürich 雪", "it's"]
    written = json.dumps(prompts, ensure_ascii=False)
    assert run(["--cfg", "job", "--package", "prompts", f"prompts={written}"]) == 0
    shown = capsys.readouterr().out
    import yaml

    assert yaml.safe_load(shown) == prompts

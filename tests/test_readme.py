"""What the README tells a newcomer to type is typed here, as it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = ROOT / "examples"
FENCED = r"```(?:python|yaml)\n(.*?)```"
BLOCKS = re.findall(FENCED, README, flags=re.DOTALL)
LOOP = (ROOT / "research/sampling/loop.py").read_text(encoding="utf-8")
SOLVERS = re.findall(FENCED, (ROOT / "docs/reference/solvers.md").read_text(encoding="utf-8"), flags=re.DOTALL)


def command(start: str) -> list[str]:
    """The README's indented command that starts so, continued lines joined, its comment left out."""
    joined = README.replace("\\\n", " ")
    line = next(line for line in joined.splitlines() if line.startswith(f"    {start}"))
    return shlex.split(line, comments=True)


def run(arguments: list[str], folder: Path) -> str:
    words = [sys.executable, "-m", *arguments]
    # one thread: two of them wait for each other when the machine has other work
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[str], Path], int]]:
    """The command without the seconds that its imports take in a process of its own; modules of its folder are forgotten."""
    from research.cli import run as research

    known = set(sys.modules)

    def call(words: list[str], folder: Path) -> int:
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))
        return research([*words[1:], "runtime.threads=1"])

    yield call
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture
def plugs(tmp_path: Path) -> Path:
    """A user's folder with the README's files, under the names in their first lines."""
    for block in BLOCKS:
        if (named := re.match(r"# (\S+\.(?:py|yaml))\n", block)) is not None:
            file = tmp_path / named.group(1)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_plugs_of_ones_own(plugs: Path, in_process: Callable[[list[str], Path], int]) -> None:
    for file in plugs.rglob("*.py"):
        for definition in re.split(r"\n(?=class )", file.read_text(encoding="utf-8"))[1:]:
            assert len(definition.splitlines()) < 40
    assert in_process([*command("research --config-dir my_conf"), "tracker=none"], plugs) == 0
    results = [json.loads(file.read_text()) for file in plugs.glob("outputs/ramped/*/result.json")]
    assert len(results) == 8
    assert {result["status"] for result in results} == {"done"}
    assert len({tuple(image["sha256"] for image in result["images"]) for result in results}) == 8


def test_the_examples_are_those_of_readme_and_docs(plugs: Path) -> None:
    """A file of the README is the example's, or the part of it that begins with its class."""
    named = [block for block in [*BLOCKS, *SOLVERS] if re.match(r"# \S+\.(?:py|yaml)\n", block)]
    assert len(named) == 4
    for block in named:
        example = (EXAMPLES / block.splitlines()[0].removeprefix("# ")).read_text(encoding="utf-8")
        _, begun, rest = block.partition("\n\n\nclass ")
        assert begun + rest in example if begun else block == example


def test_the_loop_is_that_of_the_source() -> None:
    """Its central lines stand in the loop, in this order; the source also guards plugs, cares for gradients and keeps time."""
    block = next(block for block in BLOCKS if block.startswith("for stage in self.stages"))
    source = [re.sub(r"guarded\(\"\w+\", (guidance\.\w+), ", r"\1(", line.strip()) for line in LOOP.splitlines()]
    places = [source.index(line.strip()) for line in block.splitlines()]
    assert places == sorted(places)
    assert len(places) == 11


@pytest.mark.slow
def test_the_template_runs_as_it_is(tmp_path: Path, in_process: Callable[[list[str], Path], int]) -> None:
    folder = Path(shutil.copytree(EXAMPLES, tmp_path / "study"))
    line = next(line.strip() for line in (EXAMPLES / "template.py").read_text().splitlines() if "--config-dir" in line)
    small = ["steps=3", "prompts=[fox on a red background]", "tracker=none", "metrics=none"]
    assert in_process([*shlex.split(line), *small], folder) == 0
    assert in_process(["research", *small, "sweep_name=plain"], folder) == 0
    found = {file.parts[-4]: Image.open(file).tobytes() for file in folder.glob("outputs/*/*/images/*.png")}
    # classifier-free guidance with the same scale, and a hook that does nothing: the same picture
    assert found.keys() == {"default", "plain"}
    assert found["default"] == found["plain"]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("guidance=mine", "ZeroDivisionError: division by zero; raised in guidance Mine.combine at step 2"),
        pytest.param(
            "hooks=mine", "KeyError: 'nowhere'; raised in hook MyHook.post_step at step 1", marks=pytest.mark.slow
        ),
    ],
)
def test_an_error_inside_a_plug_names_it_and_keeps_the_traceback(
    broken: str, said: str, tmp_path: Path, in_process: Callable[[list[str], Path], int]
) -> None:
    (tmp_path / "mine.py").write_text(
        "from research.guidance import CFG\nfrom research import Hook\n\n\n"
        "class Mine(CFG):\n    def combine(self, state, predictions):\n        1 / (2 - state.stage.step)\n"
        "        return super().combine(state, predictions)\n\n\n"
        "class MyHook(Hook):\n    def post_step(self, state):\n        if state.stage.step == 1:\n            {}['nowhere']\n",
        encoding="utf-8",
    )
    for group, text in (
        ("guidance", "_target_: mine.Mine\nscale: 2.0\n"),
        ("hooks", "mine:\n  _target_: mine.MyHook\n"),
    ):
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / "mine.yaml").write_text(text, encoding="utf-8")
    words = ["research", "--config-dir", "conf", broken, "steps=4", "prompts=[fox]", "tracker=none", "metrics=none"]
    assert in_process(words, tmp_path) == 1
    (file,) = tmp_path.glob("outputs/*/*/result.json")
    assert json.loads(file.read_text())["error"].startswith(said)
    assert "mine.py" in (file.parent / "traceback.txt").read_text()


@pytest.mark.parametrize("steps", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_python_example(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands there, and with few steps; the first page of the documentation has much the same, run whole by test_docs."""
    block = next(block for block in BLOCKS if "load_model" in block)
    assert "steps=20" in block
    monkeypatch.chdir(tmp_path)
    exec(block.replace("steps=20", f"steps={steps}"), {"__name__": "__main__"})
    assert capsys.readouterr().out.startswith(f"{2 * steps} {{'uncond': {steps}, 'cond': {steps}}}")
    assert (tmp_path / "pizza.png").is_file()


@pytest.mark.slow
def test_own_sweep(tmp_path: Path) -> None:
    words = command("research -m scheduler=ddim,euler,dpmpp_2m")
    run([*words, "tracker=none"], tmp_path)
    rows = (tmp_path / "outputs/foxes/results.csv").read_text().splitlines()
    assert len(rows) == 1 + 12
    assert (tmp_path / "outputs/foxes/contact_sheet.png").is_file()


TASKS = re.findall(
    r"^\|[^|]+\|[^|]+\| `(research [^`]*task[^`]*|research model=[^`]*)` \|$",
    (ROOT / "docs/reference/tasks.md").read_text(encoding="utf-8"),
    flags=re.MULTILINE,
)


@pytest.mark.parametrize("line", TASKS)
@pytest.mark.spread(2)
def test_tasks(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from research.cli import run as research

    monkeypatch.chdir(tmp_path)
    words = shlex.split(line.replace("task.image=FILE", "task.image=zoo:pizza").replace("FILE", "zoo:mask_half"))
    # the image of a job, and one prompt, is enough to see it work
    prompts = [] if "prompts" in line else ["prompts=[pizza on a blue background]"]
    assert research([*words[1:], *prompts, "steps=2", "metrics=none", "tracker=none", "runtime.threads=1"]) == 0
    (file,) = tmp_path.glob("outputs/*/*/result.json")
    assert json.loads(file.read_text())["status"] == "done"


def test_there_is_a_command_for_each_task() -> None:
    assert len(TASKS) == 6

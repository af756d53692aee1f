"""The source of the user's own plugs is a part of the job: edited, they make another job, and what is old is said."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from research.cli import run
from research.compare.cli import main as compare
from research.errors import ConfigError
from research.jobs import run_job, signatures
from research.jobs.changed_plugs import changed_since
from research.jobs.compose import Composer
from research.jobs.job import Job
from research.jobs.plug_sources import plug_sources, source_of, targets_of
from research.jobs.validate import validate
from research.report.cli import main as report
from research.score_cli import main as score
from tests.support.small_jobs import settings_of, working_folder

PLUGS = """
from research.guidance import Guidance
from research.metrics.base import MetricResult
from research.sampling import Branch, Guided, Prediction
from helpers.mix import mix

class Mine(Guidance):
    '''A way to mix.'''
    requires = frozenset({"uncond"})
    def __init__(self, scale: float = 3.0):
        self.scale = scale
    def branches(self, state):
        return [Branch(name, state.conditions[name]) for name in ("uncond", "cond")]
    def combine(self, state, p):
        return Guided(Prediction(mix(p["uncond"].value, p["cond"].value, self.scale), p["cond"].kind))

class Count:
    name = "count"
    def compute(self, images, prompts, *, device):
        return MetricResult({"count": float(len(images))})
"""
MIX = "SIGN = 1\n\ndef mix(u, c, scale):\n    return u + SIGN * scale * (c - u)\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a guidance and a metric in my_own.py, which imports a package beside it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    working_folder(tmp_path, monkeypatch, "my_own", PLUGS)
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "__init__.py").write_text("")
    (tmp_path / "helpers" / "mix.py").write_text(MIX)
    for name in [name for name in sys.modules if name.partition(".")[0] == "helpers"]:
        del sys.modules[name]
    signatures.forget()
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    signatures.forget()


def command(model: Path, *more: str) -> list[str]:
    return [*settings_of(model, steps=2), "guidance._target_=my_own.Mine", "runtime.progress=lines", *more]


def records(sweep: Path) -> dict[str, dict[str, Any]]:
    return {f.parent.name: json.loads(f.read_text()) for f in sorted(sweep.glob("*/result.json"))}


EDITS = {
    "a value": ("my_own.py", "3.0", "2.0", True),
    "an operator in a helper": ("helpers/mix.py", "u + SIGN", "u - SIGN", True),
    "a package around a helper": ("helpers/__init__.py", "", "MORE = None\n", True),
    "text for a number": ("helpers/mix.py", "SIGN = 1", "SIGN = '1'", True),
    "a comment": ("helpers/mix.py", "SIGN = 1", "SIGN = 1  # or -1", False),
    "a docstring": ("my_own.py", "A way to mix.", "Another text.", False),
    "blank lines": ("my_own.py", "class Mine", "\n\nclass Mine", False),
    "brackets and line breaks": (
        "helpers/mix.py",
        "u + SIGN * scale * (c - u)",
        "(u\n  + (SIGN * scale) * (c - u))",
        False,
    ),
}


@pytest.mark.parametrize("what", EDITS)
def test_what_counts_as_another_source(folder: Path, what: str) -> None:
    file, old, new, other = EDITS[what]
    before = source_of("my_own.Mine")
    edit(folder / file, old, new)
    assert (source_of("my_own.Mine") != before) == other


def test_what_is_reached(folder: Path) -> None:
    """Imports inside functions, relative ones and by name are followed; those for types, and libraries, are not."""
    package = folder / "kit"
    package.mkdir()
    for name in ("a", "b", "c", "types_only"):
        (package / f"{name}.py").write_text("X = 1\n")
    (package / "__init__.py").write_text("")
    (package / "plug.py").write_text(
        "import importlib\nfrom typing import TYPE_CHECKING\nimport numpy\nfrom . import a\n"
        "if TYPE_CHECKING:\n    from .types_only import X\n"
        "class Plug:\n    def __init__(self):\n        from .b import X\n        importlib.import_module('kit.c')\n"
    )
    signatures.forget()
    before = source_of("kit.plug.Plug")
    for name in ("a", "b", "c"):
        edit(package / f"{name}.py", "X = 1", "X = 2")
        now = source_of("kit.plug.Plug")
        assert now != before, name
        before = now
    edit(package / "types_only.py", "X = 1", "X = 2")
    assert source_of("kit.plug.Plug") == before
    assert source_of("torch.nn.Linear") is None
    assert source_of("json.JSONDecoder") is None


def test_which_classes_count() -> None:
    inner = {"_target_": "losses.Mine"}
    config = {
        "guidance": {
            "_target_": "research.guidance.LossGuidance",
            "loss": inner,
            "modifiers": {"m": {"_target_": "mod.M"}},
        },
        "hooks": {"a": {"_target_": "research.hooks.Record"}, "b": {"_target_": "hooky.B"}},
        "scheduler": {"name": "x", "class_name": "solvers_of_mine.S", "options": {}},
        "tracker": {"_target_": "trackers.T"},
    }
    assert sorted(targets_of(config)) == ["hooky.B", "losses.Mine", "mod.M", "solvers_of_mine.S"]
    assert targets_of({"scheduler": {"class_name": "DDIMScheduler"}, "prompts": ["losses.Mine"]}) == []


def test_an_edited_plug_makes_new_jobs(folder: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = folder / "outputs" / "default"
    assert run(["-m", *command(tiny_sd, "guidance.scale=2,4")]) == 0
    first = records(sweep)
    assert all(set(record["plug_sources"]) == {"my_own.Mine"} for record in first.values())

    edit(folder / "my_own.py", "'''A way to mix.'''", "'''Another text.'''  # and a comment")
    capsys.readouterr()
    assert run(["-m", *command(tiny_sd, "guidance.scale=2,4")]) == 0
    assert "2 of 2 jobs done before and reused" in capsys.readouterr().err

    edit(folder / "helpers" / "mix.py", "SIGN = 1", "SIGN = -1")
    asked = ["-m", *command(tiny_sd, "guidance.scale=2,4,6")]
    assert run(["--plan", *asked]) == 0
    said = capsys.readouterr().out
    assert "2 jobs were made with another version of my_own.Mine" in said
    assert "3 jobs: 3 waiting" in said
    assert run(["--plan", "--json", *asked]) == 0
    changed = json.loads(capsys.readouterr().out)["changed_since"]
    assert {each["job_id"] for each in changed} == set(first)
    assert run(asked) == 0
    assert "2 jobs were made with another version of my_own.Mine" in capsys.readouterr().err
    now = records(sweep)
    new = {folder: record for folder, record in now.items() if folder not in first}
    assert {folder: now[folder] for folder in first} == first
    assert len(new) == 3
    # it is the new code that ran
    of = {record["config"]["guidance"]["scale"]: record for record in new.values()}
    for record in first.values():
        other = of[record["config"]["guidance"]["scale"]]
        assert [i["sha256"] for i in record["images"]] != [i["sha256"] for i in other["images"]]

    page = (sweep / "report.html").read_text()
    assert "2 jobs were made with another version of my_own.Mine" in page
    assert all(name in page for name in new)
    assert not any(name in page for name in first)
    with (sweep / "results.csv").open() as file:
        marked = {row["job_id"]: row["changed_since"] for row in csv.DictReader(file)}
    assert marked == dict.fromkeys(first, "true") | dict.fromkeys(new, "false")
    capsys.readouterr()
    assert compare([str(sweep), "--baseline", next(iter(new))]) == 0
    assert "2 jobs were made with another version of my_own.Mine" in capsys.readouterr().out
    old, its_new = next(
        (a, b) for a in first for b in new if first[a]["config"]["guidance"] == new[b]["config"]["guidance"]
    )
    assert compare([str(sweep / old), str(sweep / its_new)]) == 0
    assert "1 job was made with another version of my_own.Mine" in capsys.readouterr().out

    # back to what it was: the old jobs are the jobs
    edit(folder / "helpers" / "mix.py", "SIGN = -1", "SIGN = 1")
    assert run(["-m", *command(tiny_sd, "guidance.scale=2,4")]) == 0
    assert "2 of 2 jobs done before and reused" in capsys.readouterr().err
    page = (sweep / "report.html").read_text()
    assert all(name in page for name in first)
    assert not any(name in page for name in new)
    assert report([str(sweep)]) == 0
    assert "3 jobs were made with another version of my_own.Mine" in capsys.readouterr().out


def test_records_of_before_there_were_sources(folder: Path, tiny_sd: Path) -> None:
    assert run(["-m", *command(tiny_sd, "guidance.scale=2")]) == 0
    sweep = folder / "outputs" / "default"
    (name, record), *_ = records(sweep).items()
    del record["plug_sources"]
    old = shutil.copytree(sweep / name, sweep / "0123456789ab")
    (old / "result.json").write_text(json.dumps({**record, "job_id": old.name}))
    [found] = changed_since([Job(record["config"])])
    assert (found.job_id, found.plugs) == (old.name, ("my_own.Mine",))


def test_a_worker_that_finds_another_source_refuses(folder: Path, tiny_sd: Path) -> None:
    assert run(command(tiny_sd)) == 0
    (record,) = records(folder / "outputs" / "default").values()
    job = Job(record["config"])
    run_job.check_unchanged(job)
    edit(folder / "helpers" / "mix.py", "SIGN = 1", "SIGN = -1")
    with pytest.raises(ConfigError, match=r"my_own.Mine: its source was changed after the jobs were planned"):
        run_job.check_unchanged(job)


def test_a_metric_mended_since(folder: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scoring anew with another metric's source is another job, of the images as they were made."""
    metric_alone = "from research.metrics.base import MetricResult\n" + PLUGS[PLUGS.index("class Count") :]
    (folder / "metrics_of_mine.py").write_text(metric_alone)
    signatures.forget()
    metric = "+metrics.count._target_=metrics_of_mine.Count"
    assert run(["-m", *command(tiny_sd, "guidance.scale=2", metric)]) == 0
    sweep = folder / "outputs" / "default"
    ((old, record),) = records(sweep).items()
    edit(folder / "metrics_of_mine.py", "float(len(images))", "100.0 + len(images)")
    edit(folder / "helpers" / "mix.py", "SIGN = 1", "SIGN = -1")
    assert score([str(sweep), "--trust-plugs"]) == 0
    now = records(sweep)
    (new,) = set(now) - {old}
    assert now[old] == record
    assert now[new]["metrics"]["count"] == 102.0
    assert now[new]["plug_sources"]["my_own.Mine"] == record["plug_sources"]["my_own.Mine"]
    assert "1 job was made with another version of metrics_of_mine.Count" in capsys.readouterr().out
    # with the guidance as it was, it is the job that the command asks for
    edit(folder / "helpers" / "mix.py", "SIGN = -1", "SIGN = 1")
    assert run(["-m", *command(tiny_sd, "guidance.scale=2", metric)]) == 0
    assert "1 of 1 job done before" in capsys.readouterr().err


def test_jobs_without_plugs_of_ones_own_have_no_sources(tiny_sd: Path) -> None:
    assert plug_sources({"guidance": {"_target_": "research.guidance.CFG"}, "hooks": {}}) == {}
    assert "plug source" not in json.dumps(Job(_plain(tiny_sd)).config)


def _plain(model: Path) -> dict[str, Any]:
    with Composer() as composer:
        return validate(composer.job(composer.master([]), composer.normalise(settings_of(model))))


@pytest.fixture
def composer() -> Iterator[Composer]:
    with Composer() as found:
        yield found


@pytest.mark.slow
def test_references_and_files_count_by_content(folder: Path, tiny_sd: Path, composer: Composer) -> None:
    """However their path is written; a folder replaced under the same name is another, its files of the same size too."""

    def fill(shade: int) -> None:
        shutil.rmtree(folder / "real", ignore_errors=True)
        (folder / "real").mkdir()
        for n in range(2):
            Image.new("RGB", (8, 8), (shade, n, 0)).save(folder / "real" / f"{n}.bmp")

    def id_of(*more: str) -> str:
        lines = composer.normalise([*settings_of(tiny_sd), *more])
        return Job(validate(composer.job(composer.master([]), lines))).id

    def ids() -> set[str]:
        written = ("real", "./real", str(folder / "real"))
        return {id_of("metrics=fid", f"metrics.fid.reference={path}") for path in written}

    fill(1)
    first = ids()
    fill(2)
    second = ids()
    assert len(first) == len(second) == 1
    assert first != second
    Image.new("RGB", (16, 16)).save(folder / "x.png")
    pictures = ("x.png", "./x.png", str(folder / "x.png"))
    of_task = {id_of("task=image_to_image", f"task.image={path}") for path in pictures}
    (folder / "style.py").write_text(
        "from research.sampling import Hook\nclass Style(Hook):\n    def __init__(self, like):\n        pass\n"
    )
    signatures.forget()
    of_hook = {id_of("+hooks.s._target_=style.Style", f"+hooks.s.like={path}") for path in pictures}
    assert len(of_task) == len(of_hook) == 1
    # a name that ships means what ships, whatever folders there are
    shipped = id_of("metrics=fid")
    (folder / "emoji-eval").mkdir()
    assert id_of("metrics=fid") == shipped

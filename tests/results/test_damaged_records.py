"""A damaged record is one damaged job: named and left out by report, compare, score, W&B, dashboard and resume alike."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from research.cli import run
from research.compare import Request, compare
from research.errors import UserError
from research.jobs.record import read_result
from research.jobs.store import JobFolder
from research.report import build_report, read_sweep
from research.score_cli import main as score
from research.tracking import sync
from research.tracking.dashboard import dashboard_data
from research.tracking.mirrored_run import mirrored_run

pytestmark = pytest.mark.filterwarnings("ignore")

COMMAND = ["-m", "tracker=none", "metrics=clip_score", "steps=1", "prompts=[fox,owl,cat]", "runtime.threads=1"]
COMMAND += ["scheduler=ddim,euler,heun", "guidance.scale=2", "sweep_name=golden"]


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory, sd_directory: Path) -> Path:
    """A sweep of three jobs that are done."""
    folder = tmp_path_factory.mktemp("golden")
    assert run([*COMMAND, f"model.path={sd_directory}", f"output_dir={folder}"]) == 0
    return folder / "golden"


@pytest.fixture
def sweep(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(golden, tmp_path / "sweep"))


def victim(sweep: Path) -> Path:
    """The job that is damaged: the second, so that there are others before and after."""
    return sorted(sweep.glob("*/result.json"))[1]


# -- the five tools, each with what it says of the jobs; all raise what they must not


def by_report(sweep: Path) -> tuple[set[str], str]:
    build_report(sweep, console=Console(file=io.StringIO()))
    found = read_sweep(sweep)
    return {row.folder.name for row in found.rows}, (sweep / "report.html").read_text()


def by_compare(sweep: Path) -> tuple[set[str], str]:
    found = compare(Request((str(sweep),), each=True))
    json.dumps([str(o) for o in found.outcomes])
    return {job for side in found.sides for job in side.jobs}, "\n".join(found.notes)


def by_score(sweep: Path, capsys: pytest.CaptureFixture[str]) -> tuple[set[str], str]:
    capsys.readouterr()
    assert score([str(sweep)]) in (0, 1)
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    states = [line.partition(": ") for line in shown.splitlines() if line.startswith("[")]
    kept = {name.split()[1] for name, _, state in states if state in ("kept", "scored")}
    return kept, shown


def by_wandb(sweep: Path) -> tuple[set[str], str]:
    plan = sync.plan(sweep, sync.Options())
    dashboard_data([entry.record for entry in plan.entries])
    for entry in plan.entries:
        assert len(entry.record.digest) == 16
        json.dumps(entry.record.config, allow_nan=True).encode()
    return {entry.record.job_id for entry in plan.entries}, "\n".join(plan.damaged)


def by_tracker(sweep: Path) -> None:
    """The mirror of a job that has just ended reads its folder: it may refuse it, in one line."""
    with contextlib.suppress(UserError):
        mirrored_run(victim(sweep).parent)


TOOLS: dict[str, Callable[[Path], tuple[set[str], str]]] = {
    "report": by_report,
    "compare": by_compare,
    "wandb": by_wandb,
}

DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "binary": lambda file: file.write_bytes(bytes(range(256)) * 64),
    "no UTF-8": lambda file: file.write_bytes(b'{"status": "done", "job_id": "\xff\xfe"}'),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "a list": lambda file: file.write_text("[1, 2]"),
    "a number": lambda file: file.write_text("17"),
    "deep": lambda file: file.write_text("[" * 200_000 + "]" * 200_000),
    "deep inside": lambda file: file.write_text(
        file.read_text().replace('"caches": ', '"caches": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + ', "x": ')
    ),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a link out": lambda file: (file.rename(file.parents[2] / "outside.json"), file.symlink_to("../../outside.json")),
    "a huge number": lambda file: file.write_text(
        file.read_text().replace('"nfe": ', '"nfe": 1' + "0" * 5000 + ', "x": ')
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.spread(1)
def test_a_file_that_is_no_record(sweep: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = victim(sweep)
    others = {path.parent.name for path in sweep.glob("*/result.json")} - {file.parent.name}
    DAMAGE[damage](file)
    for name, tool in TOOLS.items():
        jobs, told = tool(sweep)
        assert jobs == others, name
        assert file.parent.name in told, name
    jobs, told = by_score(sweep, capsys)
    assert jobs == others
    assert file.parent.name in told
    by_tracker(sweep)


# -- one value changed to another


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from paths(inner, (*path, key))


def changed(record: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    made = copy.deepcopy(record)
    *above, last = path
    inner: Any = made
    for key in above:
        inner = inner[key]
    if value is REMOVED:
        del inner[last]
    else:
        inner[last] = value
    return made


REMOVED = object()
VALUES = [
    REMOVED, None, True, -1, 0, 1.5, math.nan, math.inf, 10**400, "", "x", "\ud800", "../../../etc/passwd", "/etc/passwd",
    [], ["x"], [None], [[]], {}, {"a": 1}, {"a": {"b": [math.nan]}}, {"file": "../x"}, [{"file": 3}],
]  # fmt: skip


@settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_value_changed_to_any_other_is_at_most_one_damaged_job(
    sweep: Path, data: st.DataObject, capsys: pytest.CaptureFixture[str]
) -> None:
    file = victim(sweep)
    original = file.read_text()
    record = json.loads(original)
    others = {path.parent.name for path in sweep.glob("*/result.json")} - {file.parent.name}
    path = data.draw(st.sampled_from(list(paths(record))), label="path")
    value = data.draw(st.sampled_from(VALUES), label="value")
    try:
        file.write_text(json.dumps(changed(record, path, value), ensure_ascii=True))
        for name, tool in TOOLS.items():
            jobs, told = tool(sweep)
            assert others <= jobs, name
            assert jobs == others | {file.parent.name} or file.parent.name in told, name
        jobs, told = by_score(sweep, capsys)
        assert others <= jobs
        by_tracker(sweep)
    finally:
        file.write_text(original)


# -- numbers that were altered, and files that are no files


def again(sweep: Path, sd_directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The sweep asked for once more; what it says."""
    capsys.readouterr()
    settings_ = [line for line in COMMAND if not line.startswith("sweep_name")]
    assert run([*settings_, "sweep_name=sweep", f"model.path={sd_directory}", f"output_dir={sweep.parent}"]) == 0
    return capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.brought(
    "Folders of results", "a record whose numbers were altered", "repaired", "the job is made again; tools say it"
)
def test_no_job_is_spared_for_altered_numbers(
    sweep: Path, sd_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = victim(sweep)
    original = file.read_text()
    record = json.loads(original)
    file.write_text(json.dumps(record, sort_keys=True))  # the same, written in another way
    assert "done before and reused" in again(sweep, sd_directory, capsys)
    assert json.loads(file.read_text()) == record
    for altered in ({**record, "metrics": {"clip_score": 99.0}}, {**record, "nfe": 1}, {**record, "seal": 3}):
        file.write_text(json.dumps(altered))
        for tool in ("report", "compare"):
            jobs, told = TOOLS[tool](sweep)
            assert file.parent.name in jobs
            assert "altered after" in told
    assert score([str(sweep)]) == 0  # what it does not measure stays altered
    assert read_result(file.parent).altered == {"made", "measured"} - ({"measured"} if "metrics" in record else set())
    assert "was altered after it was written; the job is done again" in again(sweep, sd_directory, capsys)
    assert not read_result(file.parent).altered


def huge() -> bytes:
    """A PNG that says it has 60,000 x 60,000 pixels."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, format="PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


REPLACED: dict[str, Callable[[Path], object]] = {
    "a folder": lambda file: file.mkdir(),
    "a pipe": os.mkfifo,
    "a link out of the folder": lambda file: file.symlink_to("/etc/hostname"),
    "a link to nothing": lambda file: file.symlink_to("nowhere"),
    "a huge picture": lambda file: file.write_bytes(huge()),
}


@pytest.mark.brought(
    "Folders of results",
    "folders, pipes, links out and huge pictures in the place of images",
    "refused",
    "of the job alone",
)
@pytest.mark.parametrize("kind", REPLACED)
@pytest.mark.spread(2)
def test_images_that_are_no_files(sweep: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = victim(sweep).parent
    others = {path.parent.name for path in sweep.glob("*/result.json")} - {job.name}
    file = min((job / "images").iterdir())
    file.unlink()
    REPLACED[kind](file)
    for name in ("report", "compare"):
        jobs, told = TOOLS[name](sweep)
        assert others <= jobs
        if name == "report" and kind != "a link to nothing":
            assert job.name in told
    jobs, told = by_score(sweep, capsys)
    assert jobs == others
    assert job.name in told
    by_tracker(sweep)
    assert JobFolder(job).finished() is None

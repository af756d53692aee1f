"""``research-wandb sync``: what a server lacks is sent, once, with clear exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.sweep_samples import PROMPTS, write_job
from wandb_stub import KEY, Stub

from research.tracking.cli import run as command
from research.tracking.mirrored_run import mirrored_run


@pytest.fixture
def stub(monkeypatch):
    with Stub() as started:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", started.base_url)
        yield started


@pytest.fixture
def sweep(tmp_path) -> Path:
    for scale in (1.0, 3.0):
        write_job(tmp_path / "outputs" / "first", scale=scale, steps=2, prompts=PROMPTS[:1])
    write_job(tmp_path / "outputs" / "second", steps=2, error="latents became NaN in /home/someone/x.py")
    (tmp_path / "outputs" / "first" / "unfinished").mkdir()
    (tmp_path / "outputs" / "first" / "unfinished" / "config.yaml").write_text("{}")
    return tmp_path / "outputs"


def sync(capsys, folder: Path, *arguments: str) -> tuple[int, str, str]:
    code = command(["sync", str(folder), "--request-timeout", "10", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.slow
def test_a_folder_of_sweeps_goes_over_once_and_then_only_what_has_changed(stub, sweep, capsys):
    code, out, _ = sync(capsys, sweep, "--dry-run")
    assert (code, stub.runs) == (0, {})
    assert "3 new; nothing was sent (--dry-run)\n1 jobs have no result yet" in out
    code, out, err = sync(capsys, sweep)
    assert (code, out.splitlines()[0]) == (0, f"3 sent, 0 up to date before ({stub.base_url})")
    assert len(err.splitlines()) == 3
    assert sorted(run["group"] for run in stub.runs.values()) == ["first", "first", "second"]
    failed = next(run for run in stub.runs.values() if run["group"] == "second")
    assert failed["summary"]["error"] == "latents became NaN in x.py"
    assert "failed" in failed["tags"]
    assert failed["exitcode"] == 1
    held = stub.content()
    asked = len(stub.requests)
    code, out, _ = sync(capsys, sweep)
    assert (code, stub.content()) == (0, held)
    assert "upsert" not in stub.requests[asked:]  # three requests for all jobs together

    # one job is scored again, elsewhere, in a copy of the folder
    copy = Path(shutil.move(sweep, sweep.parent / "elsewhere"))
    job = next(path for path in (copy / "first").iterdir() if (path / "result.json").exists())
    result = json.loads((job / "result.json").read_text())
    result["metrics"]["fid"] = 4.25
    del result["metrics"]["clip_score_se"]
    (job / "result.json").write_text(json.dumps(result))
    code, out, _ = sync(capsys, copy, "--dry-run", "--json")
    assert sorted(entry["state"] for entry in json.loads(out)["jobs"]) == ["changed", "up to date", "up to date"]
    assert sync(capsys, copy)[0] == 0
    run = stub.runs[mirrored_run(job).run_id]
    assert run["summary"]["fid"] == 4.25
    assert "clip_score_se" not in run["summary"]
    assert len(stub.runs) == 3
    assert len(run["history"]) == len(held[mirrored_run(job).run_id]["history"])


@pytest.mark.slow
def test_what_an_offline_run_wrote_is_marked_as_brought_over(stub, sweep, capsys, tmp_path):
    run_id = mirrored_run(next((sweep / "second").glob("*/result.json")).parent).run_id
    offline = sweep / "second" / "wandb" / f"offline-run-20260101_000000-{run_id}"
    offline.mkdir(parents=True)
    (offline / f"run-{run_id}.wandb").write_bytes(b"")
    assert sync(capsys, sweep / "second")[0] == 0
    assert (offline / f"run-{run_id}.wandb.synced").exists()


@pytest.mark.slow
def test_images_are_those_of_the_job_and_artifacts_are_asked_for(stub, tmp_path, capsys):
    job = write_job(tmp_path / "s", steps=2, prompts=PROMPTS[:3])
    assert sync(capsys, job, "--max-images", "1", "--artifacts", "--project", "mine")[0] == 0
    (run,) = stub.runs.values()
    assert run["project"] == "mine"
    assert run["summary"]["images"]["count"] == 1
    assert run["summary"]["samples"]["nrows"] == 3
    (artifact,) = stub.artifacts.values()
    assert artifact["state"] == "COMMITTED"
    assert sorted(artifact["files"]) == [
        "config.json", "curve.json", "images/00000_seed0.png", "images/00001_seed1.png", "images/00002_seed2.png",
        "manifest.json", "summary.json",
    ]  # fmt: skip
    assert str(tmp_path).encode() not in b"".join(stub.bodies)


@pytest.mark.slow
def test_a_job_that_cannot_be_read_is_named_and_the_others_go(stub, sweep, capsys):
    (sweep / "second" / "broken").mkdir()
    (sweep / "second" / "broken" / "result.json").write_text("{")
    code, out, err = sync(capsys, sweep / "second")
    assert code == 1
    assert out.startswith("1 sent")
    assert "broken/result.json: cannot be used" in err


@pytest.mark.slow
def test_it_ends_within_its_limit(stub, sweep, capsys):
    stub.trouble = lambda what: "hang" if what == "stream" else None
    code, out, _ = sync(capsys, sweep, "--limit", "6", "--workers", "1", "--retries", "0")
    assert code == 1
    assert "3 not sent" in out


def test_without_a_key_nothing_is_sent_and_a_dry_run_says_what_would_be(sweep, capsys):
    code, out, err = sync(capsys, sweep)
    assert (code, out) == (2, "")
    assert err.startswith("error: no key for https://api.wandb.ai was found; set WANDB_API_KEY or run wandb login.")
    code, out, err = sync(capsys, sweep, "--dry-run")
    assert (code, err) == (0, "")
    assert "no key for https://api.wandb.ai, so it was not asked what it holds" in out
    assert out.count("unknown") == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: is no folder"),
        (["."], "has no finished jobs"),
        ([".", "--workers", "0"], "found '0'; accepted is a whole number from 1"),
        ([".", "--limit", "-1"], "accepted is a number of seconds above 0"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(tmp_path, arguments, said):
    done = subprocess.run(
        [sys.executable, "-m", "research.tracking.cli", "sync", *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr

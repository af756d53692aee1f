"""What goes wrong in the night: memory, disks, damaged files, trackers, and ids that are the same by chance."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.small_jobs import settings_of, working_folder

from research.cli import run
from research.jobs import faults
from research.jobs.compose import Composer
from research.jobs.points import points_of
from research.jobs.progress import configure_logging
from research.jobs.record import ImageRecord, JobResult, StoreError, read_result
from research.jobs.shared_batches import SharedBatches
from research.jobs.store import JobFolder
from research.jobs.sweep import plan, run_jobs

PLUGS = """
import time
import torch
from research import Hook
from research.guidance import CFG

class Hungry(CFG):
    "A batch of more than `fits` images asks for more memory than there is, as real allocators are asked."
    def __init__(self, scale=1.0, fits=1, how="torch"):
        super().__init__(scale)
        self.fits, self.how = fits, how
    def combine(self, state, predictions):
        if len(state.run.rows) > self.fits and state.stage.index == 1:
            if self.how == "torch":
                torch.empty(1 << 60)
            if self.how == "python":
                bytearray(1 << 62)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return super().combine(state, predictions)

class Sleepy:
    close_limit = 0.2
    def log_job(self, folder):
        time.sleep(600)
    def close(self):
        pass

class Dead(Sleepy):
    def log_job(self, folder):
        raise ConnectionError("nobody there")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return working_folder(tmp_path, monkeypatch, "fault_plugs", PLUGS)


@pytest.fixture
def base(tiny_sd: Path) -> list[str]:
    return settings_of(tiny_sd, steps=2, prompts="[fox,owl,cat,hen]")


def planned(*lines: str) -> list[Any]:
    with Composer() as composer:
        normal = composer.normalise(lines)
        master = composer.master(normal)
        return plan(composer, master, points_of(composer, master, normal).found)


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(f.read_text(encoding="utf-8")) for f in sorted(folder.rglob("result.json"))]


def hashes(result: dict[str, Any]) -> list[str]:
    return [entry["sha256"] for entry in result["images"]]


# -- memory


@pytest.mark.parametrize("how", ["torch", "python", "cuda"])
@pytest.mark.spread(1)
def test_a_batch_that_does_not_fit_is_halved(here: Path, base: list[str], how: str) -> None:
    from PIL import Image, ImageChops

    hungry = ["guidance._target_=fault_plugs.Hungry", f"+guidance.how={how}", "scheduler=euler_a"]
    assert run([*base, *hungry, "+guidance.fits=4", "output_dir=roomy"]) == 0
    assert run([*base, *hungry, "+guidance.fits=1", "output_dir=tight"]) == 0
    (roomy,), (tight,) = results(here / "roomy"), results(here / "tight")
    assert roomy["out_of_memory"] == []
    events = tight["out_of_memory"]
    assert [(e["rows"], e["batch_size"], e["halved_to"]) for e in events] == [([0, 4], 4, 2), ([0, 2], 2, 1)]
    assert "memory" in events[0]["error"] or events[0]["error"] == "MemoryError"
    assert "out of memory with batches of 4; made in batches of 2" in tight["warnings"]
    assert tight["status"] == "done"
    assert tight["nfe"] == roomy["nfe"]
    for one, other in zip(roomy["images"], tight["images"], strict=True):
        folders = [here / "roomy" / "default" / roomy["job_id"], here / "tight" / "default" / tight["job_id"]]
        pictures = [Image.open(f / e["file"]) for f, e in zip(folders, (one, other), strict=True)]
        # to a rounding: kernels differ by the shape of a batch
        assert max(high for _, high in ImageChops.difference(*pictures).getextrema()) <= 1


def test_one_image_that_does_not_fit_fails_the_job_and_no_other(here: Path, base: list[str]) -> None:
    sweep = ["-m", *base, "guidance._target_=fault_plugs.Hungry", "+guidance.fits=0,4"]
    assert run(sweep) == 1
    found = {r["config"]["guidance"]["fits"]: r for r in results(here)}
    assert found[4]["status"] == "done"
    assert found[0]["status"] == "failed"
    assert "a single image at a time does not fit" in found[0]["error"]


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert faults.is_out_of_memory(MemoryError())
    assert not faults.is_out_of_memory(RuntimeError("shapes do not match"))
    assert not faults.is_out_of_memory(ValueError("out of memory"))
    assert not faults.is_out_of_memory(None)


# -- damaged files


def damage(kind: str, job: Path) -> None:
    image = next((job / "images").iterdir())
    content = image.read_bytes()
    if kind == "result cut short":
        (job / "result.json").write_bytes((job / "result.json").read_bytes()[:99])
    elif kind == "result is no object":
        (job / "result.json").write_text("[]")
    elif kind == "result of another job":
        text = (job / "result.json").read_text()
        (job / "result.json").write_text(text.replace(job.name, "0123456789ab"))
    elif kind == "image cut short":
        image.write_bytes(content[:-9])
    elif kind == "image with a bit turned":
        image.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    elif kind == "image empty":
        image.write_bytes(b"")
    elif kind == "image gone":
        image.unlink()


KINDS = [
    ("result cut short", "result.json cannot be read"),
    ("result is no object", "result.json cannot be read"),
    ("result of another job", "result.json is of another job, 0123456789ab"),
    ("image cut short", "is not the file that was written"),
    ("image with a bit turned", "is not the file that was written"),
    ("image empty", "is empty"),
    ("image gone", "is gone"),
]


@pytest.mark.slow
def test_damage_is_noticed_said_and_mended(here: Path, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    sweep = [*base, "seed=0,10"]
    run_jobs(planned(*sweep))
    before = {r["job_id"]: hashes(r) for r in results(here)}
    job = here / "outputs" / "default" / min(before)
    for kind, said in KINDS:
        damage(kind, job)
        capsys.readouterr()
        run_jobs(planned(*sweep))
        shown = capsys.readouterr().err
        (line,) = [line for line in shown.splitlines() if "done again" in line]
        assert line.startswith(f"job {job.name}: "), kind
        assert said in line, kind
        assert "1 of 2 jobs done before and reused" in shown
        assert {r["job_id"]: hashes(r) for r in results(here)} == before
    capsys.readouterr()
    run_jobs(planned(*sweep))
    assert "2 of 2 jobs done before and reused" in capsys.readouterr().err


@pytest.mark.slow
def test_of_a_thousand_images_the_one_that_was_changed_is_found(tmp_path: Path) -> None:
    import hashlib

    job = JobFolder(tmp_path / "job")
    job.clear()
    content = os.urandom(50_000)
    digest = hashlib.sha256(content).hexdigest()
    names = [f"images/{k:05d}.png" for k in range(1000)]
    for name in names:
        (job.path / name).write_bytes(content)
    images = [ImageRecord(file=name, seed=k, prompt=None, sha256=digest) for k, name in enumerate(names)]
    job.write_result(JobResult(job_id="job", status="done", images=images, n_images=1000))
    start = time.perf_counter()
    assert job.finished() is not None
    untouched = time.perf_counter() - start
    for name in names:
        os.utime(job.path / name)  # as a copy does that keeps no times
    start = time.perf_counter()
    assert job.finished() is not None
    hashed = time.perf_counter() - start
    print(f"1000 images: {untouched * 1e3:.0f} ms by size and time, {hashed * 1e3:.0f} ms by hash")
    (job.path / names[7]).write_bytes(content[::-1])
    found = read_result(job.path)
    assert job.flaw(found.images, found.files) == f"{names[7]} is not the file that was written"


# -- folders


@pytest.mark.slow
def test_an_output_folder_may_be_moved_and_copied(
    here: Path, base: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["-m", *base, "seed=0,10"]
    assert run(sweep) == 0
    shutil.move(here / "outputs", here / "elsewhere")
    shutil.copytree(here / "elsewhere", here / "copied", copy_function=shutil.copyfile)  # with new times
    for folder in ("elsewhere", "copied"):
        capsys.readouterr()
        assert run([*sweep, f"output_dir={folder}"]) == 0
        assert "2 of 2 jobs done before and reused" in capsys.readouterr().err
    assert not (here / "outputs").exists()


def test_short_ids_that_collide(here: Path, base: list[str]) -> None:
    first, second = planned(*base, "seed=0,10")
    second.id = first.id  # as chance might have it
    second.digest = first.digest[:12] + second.digest[12:]
    assert run_jobs([first]).failed == []
    assert run_jobs([second]).failed == []  # another job is on disk under this id
    assert sorted(r["job_id"] for r in results(here)) == sorted([first.id, second.digest[:24]])
    assert sorted(r["seeds"][0] for r in results(here)) == [0, 10]
    shutil.rmtree(here / "outputs")
    assert run_jobs([first, second]).failed == []  # both in one sweep
    assert sorted(r["seeds"][0] for r in results(here)) == [0, 10]


@pytest.mark.slow
def test_a_folder_of_a_later_version_is_left_alone(
    here: Path, base: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = here / "outputs" / "default"
    sweep.mkdir(parents=True)
    marker = '{"format": 2, "research": "9.1"}'
    (sweep / "sweep.json").write_text(marker)
    assert run([*base]) == 2
    shown = capsys.readouterr().err
    assert "was written by research 9.1 (format 2)" in shown
    assert len([line for line in shown.splitlines() if line.startswith("error")]) == 1
    assert [p.name for p in sweep.iterdir()] == ["sweep.json"]
    (sweep / "sweep.json").write_text("{")  # cut short by a power cut: said, and written again
    assert run([*base]) == 0
    assert "sweep.json: cannot be used: Input data was truncated. It is written again" in capsys.readouterr().err
    assert json.loads((sweep / "sweep.json").read_text())["format"] == 1


def test_jobs_of_another_sweep_or_version_in_a_folder_are_said(
    here: Path, base: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["-m", *base, "seed=0,10"]) == 0
    for file in here.rglob("result.json"):
        record = json.loads(file.read_text())
        del record["seal"]  # earlier versions wrote none
        record["versions"]["research"] = "0.0." + record["versions"]["research"]
        file.write_text(json.dumps(record))
    capsys.readouterr()
    assert run(["-m", *base, "seed=0,20"]) == 0
    shown = capsys.readouterr().err
    assert "outputs/default holds 1 job of other settings too" in shown
    assert "some are of research 0.0." in shown
    assert len(results(here)) == 3


# -- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small; needs the right to mount."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no right to mount: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_stops_the_sweep_and_loses_nothing(
    here: Path, base: list[str], small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["-m", *base, "seed=0,10,20,30", "images_per_prompt=4", f"output_dir={small_disk}"]
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((2 << 20) - (100 << 10)))  # room for a job or two
    assert run(sweep) == 1
    shown = capsys.readouterr().err
    assert "cannot be written: No space left on device" in shown.splitlines()[-1]
    assert "Traceback" not in shown
    first = results(small_disk)
    assert 1 <= len(first) < 4
    assert all(JobFolder(small_disk / "default" / r["job_id"]).finished() for r in first)
    assert not list(small_disk.rglob(".*"))
    ballast.unlink()
    assert run(sweep) == 0
    assert f"{len(first)} of 4 jobs done before" in capsys.readouterr().err
    assert [r["status"] for r in results(small_disk)] == ["done"] * 4


def test_a_disk_that_turns_read_only_stops_the_sweep(
    here: Path, base: list[str], small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = planned(*base, "seed=0,10,20", f"output_dir={small_disk}")
    real = SharedBatches.run

    def then_read_only(*arguments: Any) -> Any:
        found = real(*arguments)
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SharedBatches, "run", then_read_only)
        with pytest.raises(StoreError, match="Read-only file system"):
            run_jobs(jobs)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert len(results(small_disk)) == 1
    outcome = run_jobs(jobs)
    assert (outcome.reused, len(outcome.results), outcome.failed) == (1, 3, [])
    assert not list(small_disk.rglob(".*"))


# -- trackers


@pytest.mark.spread(1)
@pytest.mark.parametrize(("name", "said"), [("Sleepy", "was left behind"), ("Dead", "nobody there")])
def test_a_tracker_delays_no_job_and_fails_none(
    here: Path,
    base: list[str],
    name: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from research.jobs import tracker_thread

    monkeypatch.setattr(tracker_thread, "_MORE", 0.1)
    base.remove("tracker=none")
    assert run(["-m", *base, "seed=0,10", "tracker=none", f"+tracker._target_=fault_plugs.{name}"]) == 0
    shown = capsys.readouterr().err
    assert shown.count(said) == 1
    assert [r["status"] for r in results(here)] == ["done", "done"]
    assert all(r["timings"]["total"] < 60 for r in results(here))

"""Claims: one process a job, whatever dies, hangs or has a clock of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import research
from research.jobs import claims
from research.jobs.claims import ClaimLost, FolderGone, claim, holder, is_claimed, tidy
from research.jobs.store import JobFolder, StoreError

HOLD = """
import sys, time
from pathlib import Path
from research.jobs.claims import claim
held = claim(Path(sys.argv[1]), float(sys.argv[2]))
print("held" if held else "busy", flush=True)
time.sleep(float(sys.argv[3]))
"""
RACE = """
import os, sys, time
from pathlib import Path
from research.jobs.claims import ClaimLost, claim
root, n = Path(sys.argv[1]), int(sys.argv[2])
while not (root / "go").exists():
    pass
for job in range(n):
    held = claim(root / f"job{job}", 5.0)
    if held:
        if not (root / f"job{job}" / "done").exists():
            with open(root / f"job{job}" / "ran", "a") as file:
                file.write(f"{os.getpid()}\\n")
            (root / f"job{job}" / "done").touch()
        try:
            held.check()
        except ClaimLost:
            pass  # two saw the same dead process at the same moment; the job is done, once
        held.release()
"""


def process(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(research.__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds the claim on tmp_path/job."""
    other = process(HOLD, tmp_path / "job", 2.0, 60)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    yield other
    other.kill()
    other.wait()


def claim_files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob(".claim.*"))


def test_one_holds_a_job_until_it_is_given_back(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    first = claim(folder)
    assert first is not None
    assert claim(folder) is None
    first.check()
    JobFolder(folder).clear()
    first.check()  # clearing the folder of a job leaves its claim
    first.release()
    second = claim(folder)
    assert second is not None
    second.release()
    assert claim_files(folder) == []


@pytest.mark.slow
def test_a_living_process_keeps_its_job(tmp_path: Path, holding: subprocess.Popen[str]) -> None:
    assert claim(tmp_path / "job", 2.0) is None
    assert holder(tmp_path / "job").startswith(f"process {holding.pid} on ")
    until = time.monotonic() + 3.0  # longer than the timeout: it gives signs of life
    while time.monotonic() < until:
        assert claim(tmp_path / "job", 2.0) is None
        time.sleep(0.2)


@pytest.mark.parametrize("clock", [0, 86400, -86400], ids=["", "ahead", "behind"])
def test_a_dead_process_is_found_out_at_once_whatever_the_clock(
    tmp_path: Path, holding: subprocess.Popen[str], clock: int
) -> None:
    holding.kill()
    holding.wait()
    (file,) = (tmp_path / "job").glob(".claim.*")
    os.utime(file, (time.time() + clock, time.time() + clock))
    taken = claim(tmp_path / "job", 60.0)
    assert taken is not None
    taken.release()
    assert claim_files(tmp_path / "job") == []


def test_a_clock_that_jumps_takes_no_job_from_the_living(tmp_path: Path, holding: subprocess.Popen[str]) -> None:
    (file,) = (tmp_path / "job").glob(".claim.*")
    for seconds in (-86400, 86400):
        os.utime(file, (time.time() + seconds, time.time() + seconds))
        assert claim(tmp_path / "job", 2.0) is None


@pytest.mark.slow
def test_a_process_that_hangs_loses_its_job_and_finds_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = claim(tmp_path / "job", 0.5)
    assert mine is not None
    mine.beat = lambda: None  # type: ignore[method-assign]  # stopped, or its machine is asleep
    other = process(HOLD.replace("held = ", "held = None\nwhile not held: held = "), tmp_path / "job", 0.5, 0.0)
    assert other.communicate(timeout=600)[0] == "held\n"
    with pytest.raises(ClaimLost, match="took this job over"):
        mine.check()
    mine.release()
    again = claim(tmp_path / "job", 0.5)  # the other one has ended without a word
    assert again is not None
    again.release()
    assert claim_files(tmp_path / "job") == []


def test_a_stopped_process_is_taken_over(tmp_path: Path, holding: subprocess.Popen[str]) -> None:
    holding.send_signal(signal.SIGSTOP)
    taken, start = None, time.monotonic()
    while taken is None and time.monotonic() - start < 20:
        taken = claim(tmp_path / "job", 1.0)
        time.sleep(0.1)
    assert taken is not None
    assert time.monotonic() - start >= 1.0
    taken.release()
    holding.send_signal(signal.SIGCONT)


@pytest.mark.slow
def test_of_another_machine_only_time_tells(tmp_path: Path, holding: subprocess.Popen[str]) -> None:
    holding.kill()
    holding.wait()
    (file,) = (tmp_path / "job").glob(".claim.*")
    file.write_text(json.dumps({**json.loads(file.read_text()), "machine": "elsewhere", "host": "elsewhere"}))
    assert claim(tmp_path / "job", 0.6) is None
    time.sleep(0.7)
    taken = claim(tmp_path / "job", 0.6)
    assert taken is not None
    taken.release()


def test_a_claim_that_was_cut_short_is_stale_in_time(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / ".claim.0").write_text("")
    assert claim(tmp_path / "job", 0.3) is None
    time.sleep(0.4)
    taken = claim(tmp_path / "job", 0.3)
    assert taken is not None
    taken.release()
    assert claim_files(tmp_path / "job") == []


def test_a_claim_that_this_process_forgot_is_no_hindrance(tmp_path: Path) -> None:
    first = claim(tmp_path / "job")
    assert first is not None
    claims._held.clear()
    second = claim(tmp_path / "job")
    assert second is not None
    second.release()


def test_what_the_dead_left_at_a_done_job_is_removed(tmp_path: Path, holding: subprocess.Popen[str]) -> None:
    tidy(tmp_path / "job")
    assert claim_files(tmp_path / "job") == [".claim.0"]
    holding.kill()
    holding.wait()
    tidy(tmp_path / "job")
    assert claim_files(tmp_path / "job") == []


def test_many_processes_and_each_job_once(tmp_path: Path) -> None:
    jobs = 100
    for job in range(0, jobs, 2):  # half of them were held by a process that is dead
        (tmp_path / f"job{job}").mkdir()
        dead = {"machine": claims.machine(), "pid": 2**22 - 3, "started": "1", "host": "h", "token": "t"}
        (tmp_path / f"job{job}" / ".claim.0").write_text(json.dumps(dead))
    racers = [process(RACE, tmp_path, jobs) for _ in range(8)]
    time.sleep(0.5)
    (tmp_path / "go").touch()
    assert [racer.wait(600) for racer in racers] == [0] * 8
    ran = [(tmp_path / f"job{job}" / "ran").read_text().split() for job in range(jobs)]
    assert [len(pids) for pids in ran] == [1] * jobs
    assert not list(tmp_path.rglob(".claim.*"))


def test_a_folder_that_takes_no_claim(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"output_dir: .* cannot be written"):
        claim(tmp_path / "file" / "job")


def test_a_folder_that_was_taken_away_is_no_other_process(tmp_path: Path) -> None:
    folder = tmp_path / "sweep" / "job"
    for take in (shutil.rmtree, lambda f: f.rename(tmp_path / "elsewhere"), lambda f: (f / ".claim.0").unlink()):
        mine = claim(folder)
        assert mine is not None
        take(folder)
        (folder / "images").mkdir(parents=True, exist_ok=True)  # as the next image does
        with pytest.raises(FolderGone, match="job was taken away while its job ran"):
            mine.check()
        mine.release()
        assert not is_claimed(folder)
    mine = claim(folder)
    assert mine is not None
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / ".claim.0").write_text(json.dumps({"token": "another's", "pid": 1, "machine": "m"}))
    with pytest.raises(ClaimLost, match="another process took this job over") as lost:
        mine.check()
    assert not isinstance(lost.value, FolderGone)
    mine.release()
    assert is_claimed(folder)


def test_a_file_in_the_place_of_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "job").write_text("")
    with pytest.raises(StoreError, match=r"found a file at .*job; accepted is a folder"):
        claim(tmp_path / "job")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(StoreError, match="link"):
        claim(tmp_path / "link")


def test_the_working_folder_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    with pytest.raises(StoreError, match="output_dir: job is gone with the folder that the command was started in"):
        claim(Path("job"))

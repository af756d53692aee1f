from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.sweep_samples import PROMPTS, write_job, write_sweep

from research.report.cli import main
from research.report.live import LiveReport
from research.report.page import SILENT, render_progress
from research.report.progress import progress
from research.score_cli import main as score


def claimed(directory, name, *, images=1):
    """A job that a process is at work on."""
    folder = directory / name
    (folder / "images").mkdir(parents=True)
    for k in range(images):
        (folder / "images" / f"{k}.png").touch()
    (folder / "config.yaml").write_text(
        "prompts: [a, b]\nimages_per_prompt: 2\nsteps: 7\nscheduler: {name: '<ddim>'}\n"
    )
    (folder / ".claim.0").write_text("{}")
    return folder


def test_progress_is_read_from_the_files_alone(tmp_path):
    write_sweep(tmp_path, ("ddim",), (3.0,), (5, 10), prompts=PROMPTS[:1])
    write_job(tmp_path, steps=25, error="x", number=5)
    assert progress(tmp_path).total is None  # a sweep of before said nothing of its size
    ids = [p.name for p in tmp_path.iterdir()]
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, "jobs": [*ids, "running", "tobe"]}))
    folder = claimed(tmp_path, "running")
    now = progress(tmp_path)
    assert (now.done, now.failed, now.total, now.finished) == (2, 1, 5, False)
    (job,) = now.running
    assert (job.job_id, job.made, job.wanted, job.label) == ("running", 1, 4, "<ddim>, steps 7")
    shown = render_progress(now)
    assert "3 of 5 jobs have a result, 1 failed, 1 running" in shown
    assert "<ddim>" not in shown
    assert "no sign of life" not in shown
    long_ago = time.time() - SILENT - 60
    os.utime(folder / ".claim.0", (long_ago, long_ago))
    assert "no sign of life for" in render_progress(progress(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", '{"jobs": 3}', "null"])
def test_a_damaged_sweep_json_is_no_obstacle(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    assert progress(tmp_path).total is None


def test_the_live_page_waits_follows_and_ends_without_asking_for_news(tmp_path):
    directory = tmp_path / "sweep"
    report = LiveReport(directory)
    report.look()
    assert not directory.exists()  # nothing is made in the sweep's stead
    directory.mkdir()
    report.look()
    page = report.page
    assert "No job is done yet" in page.read_text()
    write_job(directory, prompts=PROMPTS[:1])
    report._not_before = 0.0
    assert report.look()
    text = page.read_text()
    assert '<meta name="live"' in text
    assert "1 job done" in text
    assert not report.look()  # nothing new, nothing built
    report.close()
    text = page.read_text()
    assert '<meta name="live"' not in text
    assert 'class="live"' not in text
    assert not list(directory.glob(".*"))


def test_a_live_view_of_nothing_leaves_nothing(tmp_path):
    report = LiveReport(tmp_path)
    report.look()
    report.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("end", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
@pytest.mark.slow
def test_the_command_watches_until_it_is_told_to_stop(tmp_path, end):
    directory = tmp_path / "sweep"
    with subprocess.Popen(
        [sys.executable, "-m", "research.report.cli", str(directory), "--serve", "0"], stdout=subprocess.PIPE, text=True
    ) as watcher:
        try:
            assert "live at http://127.0.0.1:" in watcher.stdout.readline()
            assert "0 jobs" in watcher.stdout.readline()
            write_job(directory, prompts=PROMPTS[:1])
            assert "1 jobs have a result" in watcher.stdout.readline()
        finally:
            watcher.send_signal(end)
        assert watcher.wait(timeout=600) == 0
    assert '<meta name="live"' not in (directory / "report.html").read_text()


def test_until_finished_ends_by_itself(tmp_path, capsys):
    write_job(tmp_path, prompts=PROMPTS[:1])
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, "jobs": [p.name for p in tmp_path.iterdir()]}))
    assert main([str(tmp_path), "--watch", "--until-finished"]) == 0
    assert "1 of 1 jobs have a result" in capsys.readouterr().out


def test_bad_input_is_one_line(tmp_path, capsys):
    write_job(tmp_path / "s", prompts=PROMPTS[:1])
    file = tmp_path / "file"
    file.touch()
    for arguments, pattern in (
        ([str(file), "--watch"], "found a file"),
        ([str(tmp_path / "s"), "--serve", "1000000"], "accepted is a free port"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert pattern in error
        assert error.count("\n") == 1


@pytest.mark.slow
def test_a_half_deleted_folder_is_reported_with_what_is_missing(tmp_path, capsys):
    write_sweep(tmp_path, ("ddim", "heun"), (3.0,), (5, 10), prompts=PROMPTS[:2])
    folders = sorted(p for p in tmp_path.iterdir())
    shutil.rmtree(folders[0] / "images")
    next((folders[1] / "images").glob("*.png")).unlink()
    (folders[2] / "result.json").unlink()
    (folders[3] / "result.json").write_text("{")
    write_job(tmp_path, steps=25, prompts=PROMPTS[:2], number=9)
    assert main([str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "3 images named in the records, but not in their folders" in page
    assert f"1 job folder without a result.json ({folders[2].name})" in page
    assert f"{folders[3].name}/result.json: cannot be used" in page


@pytest.mark.slow
def test_pictures_of_other_sizes_are_said(tmp_path):
    from PIL import Image

    a = write_job(tmp_path, steps=5, prompts=PROMPTS[:2])
    write_job(tmp_path, steps=10, prompts=PROMPTS[:2], number=1)
    for file in (a / "images").glob("*.png"):
        Image.open(file).resize((48, 24)).save(file)
    assert main([str(tmp_path)]) == 0
    assert "Images are of different sizes" in (tmp_path / "report.html").read_text()


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, capsys):
    write_job(tmp_path, prompts=PROMPTS[:1])
    main([str(tmp_path)])
    before = (tmp_path / "report.html").read_bytes()
    write_job(tmp_path, steps=25, prompts=PROMPTS[:1], number=1)

    replace = os.replace

    def full(source, target):
        if Path(target).name != "result.json":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    capsys.readouterr()
    assert main([str(tmp_path)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert score([str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"research-score: {tmp_path}: the report cannot be written: No space left on device"
    assert (tmp_path / "report.html").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A sweep's folder with what is not to be seen in and beside it, and the servers that show it."""
    from research.report import live

    tmp_path = tmp_path_factory.mktemp("served")
    directory = tmp_path / "sweep"
    (directory / "job" / "images").mkdir(parents=True)
    (directory / "report.html").write_text("page")
    (directory / "job" / "config.yaml").write_text("steps: 1")
    (directory / "job" / ".claim.0").write_text("{}")
    (directory / "shown").symlink_to(directory / "job" / ".claim.0")
    (directory / "circle").symlink_to(directory / "circle")
    (directory / "out").symlink_to(tmp_path / "secret")
    (directory / "up").symlink_to(tmp_path)
    os.mkfifo(directory / "pipe")
    (tmp_path / "secret").write_text("secret")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live._Handler, "timeout", 0.2)
        servers = live._serve(LiveReport(directory), 0)
        yield directory, servers
    for server in servers:
        server.shutdown()
        server.server_close()


def asked(server, path, *, method="GET", host=None):
    address = server.server_address
    name = f"[{address[0]}]" if ":" in address[0] else address[0]
    with socket.create_connection(address[:2], timeout=300) as connection:
        host = f"{name}:{address[1]}" if host is None else host
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1"))
        head, _, body = b"".join(iter(lambda: connection.recv(1 << 16), b"")).partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_what_is_none_of_the_folders_files_is_not_found(served, capfd):
    directory, (server, *_) = served
    outside = (
        *("/../secret", "/%2e%2e/secret", "/%2E./secret", "/..%2fsecret", "/job/../../secret", "//../secret", "/out"),
        *("/up/secret", f"/{directory.parent}/secret", f"//{directory.parent}/secret", "http://[/", "/..\\secret"),
    )
    for path in (*outside, "/job", "/job/", "/up", "/job/.claim.0", "/shown", "/circle", "/pipe", "/nothing"):
        assert asked(server, path)[0] == 404, path
    for path in ("/%00", "/report.html%00", "/" + "x" * 300, "/%ff%fe", "/" + "%2e%2e/" * 40 + "etc/passwd"):
        assert asked(server, path)[0] == 404, path
    for host in ("elsewhere.org", "", "[::1", "127.0.0.1.elsewhere.org", "localhost:80:80"):
        assert asked(server, "/", host=host)[0] == 404, host
    assert capfd.readouterr().err == ""


def test_pages_heads_and_both_addresses(served, capfd):
    _, servers = served
    assert [server.server_address[0] for server in servers] == ["127.0.0.1", "::1"][: len(servers)]
    for server in servers:
        assert asked(server, "/") == asked(server, "/report.html?x=1") == (200, b"page")
        assert asked(server, "/job/config.yaml", host="LocalHost") == (200, b"steps: 1")
        assert asked(server, "/live.json")[0] == 200
        for path, status in {"/": 200, "/live.json": 200, "/job": 404, "/../secret": 404}.items():
            assert asked(server, path, method="HEAD") == (status, b"")
        assert asked(server, "/", method="POST")[0] == 501
        with socket.create_connection(server.server_address[:2], timeout=300) as idle:
            idle.sendall(b"GET / HT")
            assert idle.recv(1) == b""  # closed from there
    assert capfd.readouterr().err == ""

"""``research again``: a job's images, and a picture wherever it was taken, made once more."""

from __future__ import annotations

import json
import shlex
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from research.cli import run
from research.jobs.images import recipe, save
from research.report.script_data import image_command
from research.results.read import read_sweep

PLUG = """
from research.guidance import CFG


class Louder(CFG):
    def combine(self, state, predictions):
        with state.at_scale(self, 1.5 * state.scale_of(self)):
            return super().combine(state, predictions)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, shade in (("a", 60), ("b", 200)):
        ramp = np.linspace(0, shade, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
        Image.fromarray(ramp).save(f"{name}.png")
    return tmp_path


def made(model: Path, *lines: str) -> list[Path]:
    """The images of a sweep that was run."""
    base = [f"model.path={model}", "tracker=none", "metrics=none", "steps=4", "runtime.threads=1", "sweep_name=s"]
    assert run([*base, "prompts=[fox,owl]", *lines]) == 0
    return sorted(Path("outputs/s").glob("*/images/*.png"))


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    capsys.readouterr()
    assert run(["again", *argv]) == 0
    return [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    "lines",
    [
        ["scheduler=euler_a", "runtime.parity=true"],
        ["task=image_to_image", "task.image=[a.png,b.png]", "task.strength=0.5"],
        ["task=interpolation", "task.frames=3", "scheduler=ddim"],
        ["guidance=apg", "guidance/modifiers=[interval,rescale]", "hooks=restart", "scheduler=ddim"],
    ],
    ids=lambda lines: lines[0],
)
@pytest.mark.spread(1)
@pytest.mark.slow
def test_each_image_of_a_job_and_all_of_them(here, tiny_sd, capsys, lines):
    files = made(tiny_sd, *lines)
    assert told(capsys, str(files[0].parents[1])) == ["equal"] * len(files)
    for file in files:
        (said,) = told(capsys, str(file), "--out", "alone")
        assert said in ("equal", "differs by up to 1 of 255")  # by itself, kernels round otherwise than in a batch


def test_every_command_of_a_page_makes_its_picture(here, tiny_sd, capsys):
    made(tiny_sd, "-m", "scheduler=ddim,euler_a", "runtime.parity=true,false")
    sweep = read_sweep(Path("outputs/s"))
    assert len(sweep.rows) == 4
    for row in sweep.rows:
        for image in row.images:
            (said,) = told(capsys, *shlex.split(image_command(row, image.file))[2:])
            assert said in ("equal", "differs by up to 1 of 255")


@pytest.mark.slow
def test_a_picture_that_was_taken_elsewhere(here, tiny_sd, capsys):
    file = made(tiny_sd, "scheduler=ddim", "guidance.scale=2", "images_per_prompt=1")[1]
    taken = shutil.copy(file, here / "taken.png")
    shutil.rmtree("outputs")
    assert told(capsys, str(taken)) in (["equal"], ["differs by up to 1 of 255"])
    frame = made(tiny_sd, "task=interpolation", "task.frames=3")[1]
    taken = shutil.copy(frame, here / "taken.png")
    shutil.rmtree("outputs")
    assert run(["again", str(taken)]) == 2
    assert "its job's folder is not there" in capsys.readouterr().err


def test_plugs_of_ones_own_want_trust(here, tiny_sd, capsys):
    (here / "louder_of_mine.py").write_text(PLUG)
    file = made(tiny_sd, "guidance._target_=louder_of_mine.Louder")[0]
    assert run(["again", str(file)]) == 2
    assert "louder_of_mine" in capsys.readouterr().err
    assert told(capsys, "--trust-plugs", str(file)) in (["equal"], ["differs by up to 1 of 255"])


@pytest.mark.parametrize("place", ["nothing.png", "a.png", "."])
def test_what_is_no_picture_of_a_job(here, capsys, place):
    assert run(["again", place]) == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith("research again: ")
    assert "\n" not in err


def test_a_picture_is_never_written_over(here, tiny_sd, capsys):
    file = made(tiny_sd)[0]
    before = file.read_bytes()
    assert run(["again", str(file), "--out", str(file.parent)]) == 2
    assert file.read_bytes() == before
    assert json.loads((file.parents[1] / "result.json").read_text())["status"] == "done"


@pytest.mark.slow
def test_a_record_makes_no_server_asked_unless_one_says_so(here, tiny_sd, capsys, monkeypatch):
    asked = []

    class Server(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    monkeypatch.setenv("RESEARCH_CACHE", str(here / "cache"))
    (file,) = made(tiny_sd, "task=image_to_image", "task.image=a.png", "prompts=[fox]", "scheduler=ddim")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        found = recipe(file)
        save(Image.open(file), here / "strange.png", {**found, "task": {**found["task"], "image": url}})
        capsys.readouterr()
        assert run(["again", "strange.png"]) == 2
        said = capsys.readouterr().err
        assert url in said
        assert "research again without --fetch fetches nothing that a record names" in said
        assert asked == []
        assert told(capsys, "strange.png", "--fetch", "--out", "new") == ["equal"]
        assert asked == ["/a.png"]
        assert told(capsys, "strange.png", "--out", "cached") == ["equal"]
        assert asked == ["/a.png"]
    finally:
        server.shutdown()
        server.server_close()

"""What a task cannot use is refused in one line before anything runs; nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from support.tiny_models import save_tiny_sd

from research.cli import run

I2I = ["task=image_to_image", "task.image=picture.png"]
INPAINT = ["task=inpaint", "task.image=picture.png", "task.mask=mask.png"]
DEPTH = ["task=depth_to_image", "task.image=picture.png"]

CASES: dict[str, tuple[list[str], list[str]]] = {
    "strength too large": ([*I2I, "task.strength=1.01"], ["task.strength", "1.01", "from 0 to 1"]),
    "strength negative": ([*I2I, "task.strength=-0.1"], ["task.strength", "-0.1"]),
    "strength NaN": ([*I2I, "task.strength=nan"], ["task.strength", "NaN"]),
    "strength text": ([*I2I, "task.strength=much"], ["task.strength", "'much'"]),
    "strength of no step": (
        [*I2I, "task.strength=0.01", "steps=20"],
        ["task.strength", "0.01 of 20 steps", "from 100 steps", "identity"],
    ),
    "strength of no step, policy unknown": ([*I2I, "task.on_no_steps=ignore"], ["on_no_steps", "identity"]),
    "strength zero with parity": ([*I2I, "task.strength=0", "runtime.parity=true"], ["task.strength"]),
    "image missing": (["task=image_to_image", "task.image=nowhere.png"], ["task.image", "does not exist"]),
    "image is a folder": (["task=image_to_image", "task.image=."], ["task.image", "is no file"]),
    "image is none": (["task=image_to_image", "task.image=notes.txt"], ["task.image", "no picture"]),
    "image cut short": (["task=image_to_image", "task.image=cut.png"], ["task.image", "cut.png"]),
    "image unknown in the zoo": (["task=image_to_image", "task.image=zoo:piza"], ["Did you mean 'pizza'?"]),
    "image is a number": (["task=image_to_image", "task.image=3"], ["task.image", "found 3"]),
    "images, too few": (
        ["task=image_to_image", "task.image=[picture.png,picture.png,picture.png]"],
        ["task.image", "3 pictures for 2 images"],
    ),
    "image too small": (["task=image_to_image", "task.image=dot.png"], ["task.image", "1 x 1", "factor"]),
    "mask missing": (["task=inpaint", "task.image=picture.png", "task.mask=nowhere.png"], ["task.mask"]),
    "height no multiple": ([*INPAINT, "task.height=15"], ["task.height", "15", "multiple of 2"]),
    "depth without the channel": (DEPTH, ["depth_to_image", "text_to_image"]),
    "depth map of another shape": (
        ["model.path=depth", *DEPTH, "task.depth_map=wide.png"],
        ["task.depth_map", "40 x 10", "same ratio"],
    ),
    "depth map missing": (["model.path=depth", *DEPTH, "task.depth_map=no.png"], ["task.depth_map"]),
    "text with a depth model": (["model.path=depth"], ["text_to_image", "depth_to_image"]),
    "text with an inpainting model": (["model.path=inpaint"], ["text_to_image", "inpaint"]),
    "image-to-image with an inpainting model": (["model.path=inpaint", *I2I], ["image_to_image", "inpaint"]),
    "one frame": (["task=interpolation", "task.frames=1"], ["task.frames", "from 2"]),
    "fewer frames than prompts": (
        ["task=interpolation", "task.frames=2", "prompts=[a,b,c]"],
        ["task.frames", "3 prompts"],
    ),
    "seed no number": (["task=interpolation", "task.end_seed=-1"], ["task.end_seed", "-1"]),
    "an ancestral path": (["task=interpolation", "scheduler=euler_a"], ["Interpolation", "euler_a"]),
    "an SDE path": (["task=interpolation", "scheduler=dpmpp_2m_sde"], ["Interpolation", "dpmpp_2m_sde"]),
    "DDIM with noise": (
        ["task=inversion", "task.image=picture.png", "scheduler.options.eta=1"],
        ["deterministic", "ddim"],
    ),
    "inversion of another scheduler": (
        ["task=inversion", "task.image=picture.png", "scheduler=dpmpp_2m"],
        ["dpmpp_2m", "ddim"],
    ),
    "several images a prompt on a path": (
        ["task=interpolation", "images_per_prompt=2"],
        ["images_per_prompt", "found 2"],
    ),
    "frames for an image": (["task.frames=3"], ["task.frames"]),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roles")
    for role in ("text", "inpaint", "depth"):
        save_tiny_sd(folder / role, role=role)
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for role in ("text", "inpaint", "depth"):
        (tmp_path / role).symlink_to(models / role)
    Image.new("RGB", (16, 16), "teal").save("picture.png")
    Image.new("RGB", (1, 1)).save("dot.png")
    Image.linear_gradient("L").resize((40, 10)).save("wide.png")
    Image.new("L", (16, 16), 255).save("mask.png")
    Path("notes.txt").write_text("no picture")
    Path("cut.png").write_bytes(Path("picture.png").read_bytes()[:40])
    return tmp_path


@pytest.mark.parametrize("case", CASES)
@pytest.mark.spread(3)
def test_one_clear_line(case: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines, words = CASES[case]
    before = sorted(here.iterdir())
    base = ["model.path=text", "tracker=none", "metrics=none", "steps=4", "prompts=[fox,owl]"]
    assert run([*base, *lines]) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if "loading" not in line]
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert "Traceback" not in said[0]
    for word in words:
        assert word in said[0]
    assert sorted(here.iterdir()) == before


def test_a_sweep_with_an_impossible_point_starts_none(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = ["model.path=text", "tracker=none", "metrics=none", "steps=4", "prompts=[fox]"]
    assert run(["-m", *line, "task=interpolation", "scheduler=ddim,euler_a"]) == 2
    assert "scheduler=euler_a" in capfd.readouterr().err
    assert not Path("outputs").exists()

"""Cheap pictures of x0 on the way, and the command that fits their colours."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

from research import LoopSampler, load_model
from research.errors import ConfigError, ModelError
from research.guidance import CFG
from research.hooks import Preview
from research.hooks.projection import Projection, fit_projection
from research.models.summary import outline
from research.preview_cli import run as research_preview
from research.tasks import TextToImage, Unconditional

pytestmark = pytest.mark.spread(2)

PLAIN = {"weight": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], "bias": [0, 0, 0]}


def run(model, *hooks, seeds=(1, 2), scheduler="ddim", steps=5, task=None, **arguments):
    guidance = CFG(2.0) if "text" in model.supports else None
    sampler = LoopSampler(model, scheduler, guidance=guidance, hooks=hooks)
    task = task or (TextToImage("a cat") if "text" in model.supports else Unconditional())
    return sampler.sample(task, seeds=list(seeds), steps=steps, **arguments)


# --- the hook


@pytest.mark.parametrize("scheduler", ["ddim", "heun", "pndm", "dpmpp_2m", "euler_a"])
def test_it_changes_nothing(sd, scheduler):
    plain, watched = run(sd, scheduler=scheduler), run(sd, Preview(projection=PLAIN), scheduler=scheduler)
    assert torch.equal(plain.latents, watched.latents)
    assert plain.nfe == watched.nfe
    assert [i.tobytes() for i in plain.images] == [i.tobytes() for i in watched.images]


@pytest.mark.parametrize(("every", "frames"), [(1, 7), (2, 4), (4, 3), (50, 2)])
@pytest.mark.parametrize("scheduler", ["ddim", "heun"])
@pytest.mark.spread(3)
def test_a_frame_each_so_many_steps_and_the_images_at_the_end(sd, every, frames, scheduler):
    result = run(sd, Preview(every, projection=PLAIN), steps=7, scheduler=scheduler)
    shown = result.pictures["preview"]
    assert len(shown) == frames + 1
    assert len({frame.size for frame in shown}) == 1
    assert [frame.info["duration"] for frame in shown] == [200] * frames + [1200]


@pytest.mark.fidelity("hooks/preview", source="this project", against="the projection by hand", within="exact")
def test_what_the_colours_are(sd):
    from research import Hook

    class Keep(Hook):
        def post_guidance(self, state):
            self.x0 = state.x0

    keep = Keep()
    frame = run(sd, Preview(projection=PLAIN, scale=3), keep, seeds=[4]).pictures["preview"][-2]
    tile = torch.tensor(list(frame.convert("RGB").getdata())).view(frame.height, frame.width, 3)[:24:3, :24:3]
    expected = ((keep.x0[0, :3] / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0)
    assert torch.equal(tile, expected.long())


def test_the_first_images_of_all_batches(sd):
    hook = Preview(images=3, projection=PLAIN, scale=4)
    together = run(sd, hook, seeds=range(5)).pictures["preview"]
    cut = run(sd, hook, seeds=range(5), batch_size=2).pictures["preview"]
    assert len(together) == len(cut) == 6
    for a, b in zip(together, cut, strict=True):
        assert a.size == b.size == (2 * 32 + 2, 2 * 34 + 2 * 12)  # two columns, and a line that says three of five
        near = (torch.tensor(list(a.convert("L").getdata())) - torch.tensor(list(b.convert("L").getdata()))).abs()
        assert near.max() <= 2
    few = run(sd, hook, seeds=range(2)).pictures["preview"]
    assert few[0].size == (2 * 32 + 2, 34 + 12)  # nothing of the run before, and no line on how many there are


def test_pixels_need_no_projection(pixel, grey_directory):
    for model in (pixel, load_model(grey_directory, dtype="float32", device="cpu")):
        result = run(model, Preview(scale=2), steps=3)
        assert len(result.pictures["preview"]) == 4
        assert result.pictures["preview"][0].size == (2 * 16 + 2, 18 + 12)
    with pytest.raises(ConfigError, match=r"^hooks\.preview\.projection: found one; .* works on pixels"):
        run(pixel, Preview(projection=PLAIN))


@pytest.mark.parametrize("name", ["emoji", "emoji-inpaint", "emoji-depth"])
def test_the_zoo_comes_fitted(name):
    model = outline(name)
    assert model is not None
    Preview().check(model, None)


def test_on_the_zoo_it_looks_like_the_images():
    model = load_model("emoji", dtype="float32", device="cpu")
    task = TextToImage(["pizza on a blue background", "sunflower on a white background"])
    *frames, decoded = run(model, Preview(scale=4), seeds=[0, 1], steps=12, task=task).pictures["preview"]
    last = frames[-1].crop((0, 0, 66, 32)).resize((16, 8), Image.Resampling.BOX)
    image = decoded.crop((0, 0, 66, 32)).resize((16, 8), Image.Resampling.BOX)
    a, b = (torch.tensor(list(i.getdata()), dtype=torch.float32) for i in (last, image))
    explained = 1 - (a - b).square().sum() / (b - b.mean(0)).square().sum()
    assert explained > 0.5


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"every": 0}, "every: found 0; accepted is a whole number from 1"),
        ({"images": 17}, "images: found 17; accepted is 1 to 16"),
        ({"images": 0}, "images: found 0; accepted is 1 to 16"),
        ({"scale": 0}, "scale: found 0"),
        ({"scale": 1.5}, r"scale: found 1\.5"),
        ({"duration": 0}, "duration: found 0; accepted is a number from 20"),
    ],
)
def test_what_is_refused_when_it_is_made(arguments, found):
    with pytest.raises(ConfigError, match=rf"^hooks\.preview\.{found}"):
        Preview(**arguments)


@pytest.mark.parametrize(
    ("projection", "found"),
    [
        ({**PLAIN, "weight": [[1, 2, 3]] * 3}, "found one for 3 latent channels; tiny-sd has 4"),
        ({**PLAIN, "weight": [[1, 2, 3, 4]] * 2}, r"found weight of \[2, 4\] and bias of \[3\]"),
        ({**PLAIN, "weight": [[[[1, 2], [3, 4]]] * 4] * 3}, r"found weight of \[3, 4, 2, 2\]"),
        ({**PLAIN, "bias": [0, 0]}, r"bias of \[2\]"),
        ({**PLAIN, "bias": [0, float("nan"), 0]}, "found NaN"),
        ({"weight": "a"}, "found no projection"),
        (3, "found no projection"),
        ("missing.json", "missing.json cannot be read: No such file"),
        (None, r"tiny-sd has no preview.json; fit one with: research-preview .*tiny-sd --out FILE"),
    ],
)
def test_a_projection_that_does_not_fit(sd, projection, found):
    hook = Preview(projection=projection)
    for do in (lambda: hook.check(sd, None), lambda: run(sd, hook)):
        with pytest.raises(ConfigError, match=rf"^hooks\.preview\.projection: .*{found}") as caught:
            do()
        assert "\n" not in str(caught.value)


# --- fitting


@pytest.mark.parametrize("size", [1, 3])
def test_an_exact_map_is_found(size):
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(40, 4, 6, 5, generator=draw)
    true = Projection(torch.randn(3, 4, size, size, generator=draw), torch.randn(3, generator=draw), {})
    found, r2 = fit_projection(latents, true(latents), size)
    assert r2 == pytest.approx(1.0)
    torch.testing.assert_close(found.weight, true.weight, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.bias, true.bias, atol=1e-4, rtol=1e-4)


def test_r2_is_the_share_that_is_explained():
    draw = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(60, 4, 8, 8, generator=draw), torch.randn(60, 3, 8, 8, generator=draw)
    _, r2 = fit_projection(latents, latents[:, :3] + noise)
    assert r2 == pytest.approx(0.5, abs=0.03)
    assert fit_projection(latents, noise)[1] == pytest.approx(0.0, abs=0.01)


def test_too_little_to_fit():
    with pytest.raises(ModelError, match=r"^--pictures: found 4 latent cells"):
        fit_projection(torch.randn(1, 4, 2, 2), torch.randn(1, 3, 2, 2))
    with pytest.raises(ModelError, match="pictures of different colours"):
        fit_projection(torch.randn(9, 4, 8, 8), torch.ones(9, 3, 8, 8))


@pytest.mark.slow
def test_the_command_fits_and_the_hook_finds_it(sd_directory, copied, capsys, tmp_path):
    directory = copied(sd_directory)
    assert research_preview([str(directory), "--size", "1"]) == 0
    said = capsys.readouterr().out
    assert "4 latent channels" in said
    assert "R^2 = " in said
    content = json.loads((directory / "preview.json").read_text())
    assert set(content) == {"weight", "bias", "r2", "pictures", "cells"}
    model = load_model(directory, dtype="float32", device="cpu")
    assert run(model, Preview(), steps=2).pictures["preview"]
    # elsewhere, by its name; and the same again
    assert research_preview([str(directory), "--size", "1", "--out", str(tmp_path / "mine" / "p.json")]) == 0
    assert json.loads((tmp_path / "mine" / "p.json").read_text()) == content
    assert run(model, Preview(projection=str(tmp_path / "mine" / "p.json")), steps=2).pictures["preview"]


def test_the_command_takes_a_folder(sd_odd_directory, copied, capsys, tmp_path):
    from research import zoo

    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("pizza", "cat", "sunflower"):
        shutil.copy(zoo.picture_path(name), folder)
    (folder / "notes.txt").write_text("no picture")
    directory = copied(sd_odd_directory)
    assert research_preview([str(directory), "--pictures", str(folder)]) == 0
    assert "3 latent channels, 3 pictures, 360 cells" in capsys.readouterr().out


def test_what_the_command_refuses(sd_directory, pixel_directory, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    sd = str(sd_directory)
    for argv, code, found in (
        ([], 2, "command line: the following arguments are required: MODEL_PATH"),
        ([sd, "--picture", "x"], 2, "unrecognized arguments"),
        (["emojy"], 1, "Did you mean 'emoji'?"),
        (["owner/name"], 2, "--out: must be given, owner/name is no directory of this disk"),
        ([sd, "--pictures", str(tmp_path / "none")], 2, "--pictures: "),
        ([sd, "--pictures", str(tmp_path / "empty")], 2, "holds no picture; accepted are files of .png"),
        ([sd, "--pictures", str(tmp_path / "broken"), "--out", str(tmp_path / "o.json")], 2, "a.png is no picture"),
        ([sd, "--out", str(tmp_path)], 2, "is a folder; accepted is a file"),
        ([str(pixel_directory)], 1, "works on pixels; its previews need no projection"),
    ):
        assert research_preview(argv) == code, argv
        captured = capsys.readouterr()
        assert captured.err.startswith("research-preview: "), argv
        assert found in captured.err
        assert captured.err.count("\n") == 1
    assert not (sd_directory / "preview.json").exists()
    assert not (tmp_path / "o.json").exists()

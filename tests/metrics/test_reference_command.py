"""research-reference: built, interrupted, killed, gone on with, verified, refused."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.metric_samples import pictures

from research.errors import ConfigError
from research.hashing import sha256_files
from research.image_tensors import stack
from research.metrics import FID, KID, load_features, reference_build
from research.metrics.image_source import content_sha256, open_source
from research.metrics.reference import chosen, read_reference
from research.metrics.reference_build import Build
from research.metrics.reference_cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("images") / "real"
    (place / "more").mkdir(parents=True)
    for k, picture in enumerate(pictures(40, seed=1)):
        picture.save(place / ("more" if k % 3 else ".") / f"{k:02d}.png")
    (place / "notes.txt").write_text("no image")
    return place


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_becomes_a_file_that_says_what_it_is(folder, tiny_clip, here, capsys):
    assert main([str(folder), "--features", tiny_clip, "--name", "smooth"]) == 0
    assert "smooth-tiny.safetensors: 40 images, 24 features of tiny" in capsys.readouterr().out
    assert [file.name for file in here.iterdir()] == ["smooth-tiny.safetensors"]
    assert main(["--verify", "smooth-tiny.safetensors", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["num_samples"] == told["num_vectors"] == 40
    assert told["data"]["content_sha256"] == sha256_files(folder.rglob("*.png"), folder)
    assert told["data"]["sizes"] == {"40x32": 40}
    assert told["data"]["resize"] == "PIL bicubic, antialiased"
    assert told["features"]["weights_sha256"] == load_features(tiny_clip).provenance["weights_sha256"]
    assert str(folder.parent) not in json.dumps(told)
    from_file = FID(tiny_clip, "smooth-tiny.safetensors").compute(pictures(30, seed=2), device="cpu").values
    assert from_file == pytest.approx(FID(tiny_clip, str(folder)).compute(pictures(30, seed=2), device="cpu").values)
    assert KID(tiny_clip, "smooth-tiny.safetensors").compute(pictures(30, seed=2), device="cpu").values["kid"] > 0


def test_a_zip_and_an_npz_hold_the_same_images(folder, tiny_clip, here):
    images = sorted((p.relative_to(folder).as_posix(), p) for p in folder.rglob("*.png"))
    with zipfile.ZipFile("real.zip", "w") as archive:
        for name, file in reversed(images):
            archive.write(file, name)
        archive.writestr("__MACOSX/a.png", b"rubbish")
    from PIL import Image

    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for _, file in images])
    np.savez("real.npz", pixels)
    features = load_features(tiny_clip)
    files = []
    for path in (folder, Path("real.zip"), Path("real.npz")):
        out = here / f"{path.name}.safetensors"
        Build(open_source(path), features, out, batch_size=16, vectors=40, name="real").run()
        files.append(read_reference(out, "x"))
    for other in files[1:]:
        assert torch.equal(other.feature_sum, files[0].feature_sum)
        assert torch.equal(other.feature_outer_sum, files[0].feature_outer_sum)
        assert torch.equal(other.vectors, files[0].vectors)
    assert files[0].info["data"]["content_sha256"] == files[1].info["data"]["content_sha256"]
    exact = features(stack([Image.open(file).convert("RGB") for _, file in images])).double()
    torch.testing.assert_close(files[0].feature_outer_sum, exact.T @ exact, rtol=1e-5, atol=1e-3)


def test_vectors_are_a_draw_from_all_and_can_be_left_out(folder, tiny_clip, here):
    features = load_features(tiny_clip)
    some = Build(open_source(folder), features, here / "a.safetensors", batch_size=8, vectors=10, name="r").run()
    whole = Build(open_source(folder), features, here / "b.safetensors", batch_size=8, vectors=99, name="r").run()
    assert len(some.vectors) == 10
    assert torch.equal(some.vectors, whole.vectors[chosen(40, 10)])
    assert chosen(40, 10).nonzero().max() > 20  # not only those at the beginning
    assert main([str(folder), "--features", tiny_clip, "--vectors", "0", "-o", "c.safetensors"]) == 0
    assert "features" not in load_file("c.safetensors")
    assert FID(tiny_clip, "c.safetensors").compute(pictures(30, seed=2), device="cpu").values["fid"] > 0


def test_an_interrupted_build_goes_on_and_comes_to_the_same_bits(folder, tiny_clip, here, monkeypatch, capsys):
    monkeypatch.setattr(reference_build, "CHUNK", 8)
    features = load_features(tiny_clip)
    whole = here / "whole.safetensors"
    Build(open_source(folder), features, whole, batch_size=4, vectors=30, name="r").run()

    def stop(done):
        if done >= 16:
            raise KeyboardInterrupt

    part = here / "part.safetensors"
    build = Build(open_source(folder), features, part, batch_size=4, vectors=30, name="r")
    with pytest.raises(KeyboardInterrupt):
        build.run(stop)
    assert not part.exists()
    assert part.with_name("part.safetensors.partial").exists()
    for changed in ({"batch_size": 5}, {"vectors": 29}):
        settings = {"batch_size": 4, "vectors": 30, **changed}
        assert Build(open_source(folder), features, part, name="r", **settings).go_on() == 0
    again = Build(open_source(folder), features, part, batch_size=4, vectors=30, name="r")
    assert again.go_on() == 16
    again.run()
    assert sorted(file.name for file in here.iterdir()) == ["part.safetensors", "whole.safetensors"]
    assert part.read_bytes() == whole.read_bytes()


def test_changed_images_start_anew(folder, tiny_clip, here, monkeypatch):
    import shutil

    monkeypatch.setattr(reference_build, "CHUNK", 8)
    copy = here / "copy"
    shutil.copytree(folder, copy)
    features = load_features(tiny_clip)

    def stop(done):
        raise KeyboardInterrupt

    def build():
        return Build(open_source(copy), features, here / "r.safetensors", batch_size=4, vectors=0, name="r")

    with pytest.raises(KeyboardInterrupt):
        build().run(stop)
    assert build().go_on() == 8
    pictures(1, seed=99)[0].save(copy / "00.png")
    assert build().go_on() == 0
    (here / "r.safetensors.partial").write_bytes(b"rubbish")
    assert build().go_on() == 0


@pytest.mark.parametrize("stop", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_process_that_is_ended_leaves_what_it_noted_and_no_half_a_file(stop, tiny_clip, here, capsys):
    """A real process: told to end, it notes what is done; killed, the next one goes on from the last note."""
    place = here / "many"
    place.mkdir()
    for k, picture in enumerate(pictures(1500, seed=3, size=(16, 16))):
        picture.save(place / f"{k:04d}.png")
    arguments = [str(place), "--features", tiny_clip, "--batch-size", "8", "-o", "r.safetensors"]
    code = (
        "import sys, time; from research.metrics import reference_build as b; old = b.Build._chunk\n"
        f"b.SECONDS_BETWEEN_NOTES = {0 if stop == signal.SIGKILL else 60}\n"
        "def slow(self):\n    print(self.done, flush=True); old(self)\n"
        "    if self.done > 600: time.sleep(30)\n"
        "b.Build._chunk = slow\nfrom research.metrics.reference_cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    seen = [int(process.stdout.readline()) for _ in range(3)]
    time.sleep(0.5)
    process.send_signal(stop)
    _, said = process.communicate(timeout=600)
    assert seen == [0, 256, 512]
    assert process.returncode == (130 if stop == signal.SIGTERM else -signal.SIGKILL)
    assert ("the same command goes on from there" in said) == (stop == signal.SIGTERM)
    assert not (here / "r.safetensors").exists()
    noted = len(json.loads(_metadata(here / "r.safetensors.partial")["partial"])["digests"])
    assert noted in (512, 768)
    assert main(arguments) == 0
    assert f"going on after {noted} of 1500 images" in capsys.readouterr().err
    assert main(["--verify", "r.safetensors", str(place)]) == 0
    assert sorted(file.name for file in here.iterdir()) == ["many", "r.safetensors"]


def _metadata(file: Path) -> dict[str, str]:
    content = file.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]


def test_verify_finds_what_is_wrong(folder, tiny_clip, here, capsys):
    import shutil

    assert main([str(folder), "--features", tiny_clip, "-o", "r.safetensors"]) == 0
    whole = Path("r.safetensors").read_bytes()
    other = here / "other"
    shutil.copytree(folder, other)
    (other / "00.png").unlink()
    capsys.readouterr()
    assert main(["--verify", "r.safetensors", str(other)]) == 1
    assert "was made of other images than other: 40 with the hash" in capsys.readouterr().err
    for damaged in (
        whole[:-1] + bytes([whole[-1] ^ 1]),
        whole.replace(b'"num_samples\\": 40', b'"num_samples\\": 41', 1),
        whole.replace(b"bicubic", b"bilinea", 1),
        whole[:500],
        b"",
    ):
        assert damaged != whole
        time.sleep(0.01)
        Path("bad.safetensors").write_bytes(damaged)
        assert main(["--verify", "bad.safetensors"]) == 1
        said = capsys.readouterr().err
        assert "bad.safetensors is damaged" in said
        assert said.count("\n") == 1


def test_bad_input_is_one_line_and_leaves_nothing(folder, tiny_clip, here, capsys):
    (here / "empty").mkdir()
    (here / "text.zip").write_text("no zip")
    np.savez("floats.npz", np.zeros((3, 4, 4, 3)))
    broken = here / "broken"
    broken.mkdir()
    pictures(1, seed=0)[0].save(broken / "a.png")
    (broken / "b.png").write_bytes(b"no image")
    before = sorted(here.rglob("*"))
    for arguments, pattern in (
        ([], "PATH: is missing"),
        (["nowhere"], "'nowhere' does not exist; accepted is a directory"),
        (["empty"], "empty holds 0 images; accepted is at least 2"),
        (["text.zip"], "text.zip cannot be read"),
        (["floats.npz"], "its first array is float64"),
        ([__file__], "found the file 'test_reference_command.py'"),
        ([str(folder), "--features", "nothing"], "--features: 'nothing' does not exist"),
        ([str(folder), "-o", "x.npz"], "accepted is a name that ends in .safetensors"),
        ([str(folder), "--batch-size", "0"], "--batch-size: found 0"),
        (["broken", "--features", tiny_clip], "b.png is no picture that Pillow can read"),
        (["--verify", "nowhere.safetensors"], "--verify: 'nowhere.safetensors' does not exist"),
    ):
        assert main(arguments) == 2, arguments
        said = capsys.readouterr().err
        assert pattern in said
        assert said.count("\n") == 1
    assert sorted(here.rglob("*")) == before
    assert main([str(folder), "--features", tiny_clip, "-o", "r.safetensors"]) == 0
    assert main([str(folder), "--features", tiny_clip, "-o", "r.safetensors"]) == 2
    assert "--again builds it anew" in capsys.readouterr().err
    assert main([str(folder), "--features", tiny_clip, "-o", "r.safetensors", "--again"]) == 0


def test_a_reference_of_other_features_or_of_another_length_is_refused_by_metrics(
    folder, tiny_clip, other_clip, here, tmp_path_factory
):
    from support.metric_samples import build_tiny_clip

    wide = str(build_tiny_clip(tmp_path_factory.mktemp("clip") / "wide", dimension=32))
    assert main([str(folder), "--features", tiny_clip, "-o", "r.safetensors"]) == 0
    for features in (other_clip, wide):
        for metric in (FID, KID):
            with pytest.raises(ConfigError, match=r"was made with features 'tiny'") as raised:
                metric(features, "r.safetensors").compute(pictures(30, seed=2), device="cpu")
            assert "\n" not in str(raised.value)


def test_the_hash_of_a_source_is_that_of_its_files(folder):
    assert content_sha256(open_source(folder)) == sha256_files(folder.rglob("*.png"), folder)
    buffer = io.BytesIO()
    pictures(1, seed=0)[0].save(buffer, format="PNG")
    assert open_source(folder).decoded(buffer.getvalue()).size == (40, 32)

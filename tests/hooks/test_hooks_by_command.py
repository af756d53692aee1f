"""Hooks as the command composes them: their files, and errors of a user's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from research.cli import run
from research.zoo import zoo_path

BROKEN = '''
from research import Hook

class Mine(Hook):
    """Fails at the second step."""

    def post_guidance(self, state):
        if state.stage.step == 1:
            self.helper_of_mine()

    def helper_of_mine(self):
        raise LookupError("what I meant is not there")

def halved(latents, state):
    return latents[:, :2]
'''


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sd_directory: Path):
    """Runs a small job in a folder of its own; returns its exit code and the job's folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plugs_that_break.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "plugs_that_break", raising=False)
    base = ["metrics=none", "tracker=none", "prompts=[a cat,a dog]", "steps=5", "model.device=cpu"]

    def call(*argv: str, model: str | Path = sd_directory):
        code = run([f"model.path={model}", *base, *argv])
        folders = list((tmp_path / "outputs" / "default").glob("*/result.json"))
        return code, max(folders, key=lambda f: f.stat().st_mtime_ns).parent if folders else None

    return call


def digests(folder: Path) -> list[str]:
    return [entry["sha256"] for entry in json.loads((folder / "result.json").read_text())["images"]]


def test_every_file_of_them_composes_and_runs(job):
    names = "shift,flip,blur,noise_reinjection,record,preview,dynamic_prompt"
    code, folder = job(f"hooks=[{names}]", "images_per_prompt=2", "batch_size=3", model=zoo_path("emoji"))
    assert code == 0
    with Image.open(folder / "pictures" / "preview.gif") as gif:
        assert gif.n_frames == 6
        assert gif.info["duration"] == 200
    trace = json.loads((folder / "trace.json").read_text())
    assert [len(entry["per_image"]["x0_std"]) for entry in trace["record"]] == [3] * 5
    assert [len(entry["per_image"]["x0_std"]) for entry in trace["batches"][0]["record"]] == [1] * 5
    assert not (folder / "tensors").exists()


@pytest.mark.slow
def test_looking_leaves_the_files_as_they_are(job):
    plain = job(model=zoo_path("emoji"))
    seen = job("hooks=[preview,record]", "hooks.record.tensors=[x0]", model=zoo_path("emoji"))
    assert plain[0] == seen[0] == 0
    images = [[Image.open(f).tobytes() for f in sorted((d / "images").iterdir())] for _, d in (plain, seen)]
    assert images[0] == images[1]


def test_tensors_are_files_of_the_job(job):
    code, folder = job("hooks=record", "hooks.record.tensors=[x,x0]", "hooks.record.steps=[0,4]", "batch_size=1")
    assert code == 0
    trace = json.loads((folder / "trace.json").read_text())
    assert trace["tensors"] == {
        "file": "tensors/00000.safetensors",
        "shapes": {f"{name}/step_{step:04d}": [1, 4, 8, 8] for step in (0, 4) for name in ("x", "x0")},
    }
    assert trace["batches"][0]["tensors"]["file"] == "tensors/00001.safetensors"
    kept = [load_file(folder / "tensors" / f"0000{k}.safetensors") for k in (0, 1)]
    assert not torch.equal(kept[0]["x/step_0000"], kept[1]["x/step_0000"])
    assert len((folder / "trace.json").read_text()) < 20000


def test_an_error_in_a_hook_of_ones_own(job, capsys):
    code, folder = job("+hooks.mine._target_=plugs_that_break.Mine")
    assert code == 1
    line = "LookupError: what I meant is not there; raised in hook Mine.post_guidance at step 1 (stage 1)"
    assert json.loads((folder / "result.json").read_text())["error"] == line
    assert line in "".join(capsys.readouterr())
    stack = (folder / "traceback.txt").read_text()
    assert "plugs_that_break.py" in stack
    assert "helper_of_mine" in stack


def test_a_transform_of_ones_own_that_does_not_fit(job):
    own = "{_target_: hydra.utils.get_method, path: plugs_that_break.halved}"
    code, folder = job(f"+hooks.own={{_target_: research.hooks.LatentTransform, transform: {own}}}")
    assert code == 1
    error = json.loads((folder / "result.json").read_text())["error"]
    assert error == (
        "hooks.latent_transform: halved returned (2, 2, 8, 8) torch.float32 at step 0; "
        "accepted is the latents' own (2, 4, 8, 8) torch.float32."
    )


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["hooks=preview"], "hooks.preview.projection: tiny-sd has no preview.json; fit one with: research-preview"),
        (["hooks=preview", "hooks.preview.images=40"], "hooks.preview.images: found 40; accepted is 1 to 16."),
        (["hooks=shift", "hooks.shift.transform.dz=1"], "hooks.shift.transform.dz"),
        (["hooks=shift", "hooks.shift.steps=[0.9,0.1]"], "accepted are 0 <= lo <= hi <= 1."),
        (["hooks=dynamic_prompt", "hooks.dynamic_prompt.prompts=[]"], "hooks.dynamic_prompt.prompts: found an empty list"),
    ],
)  # fmt: skip
@pytest.mark.spread(2)
def test_what_is_refused_before_anything_loads(job, capsys, argv, found):
    code, folder = job(*argv)
    assert code == 2
    assert folder is None
    said = capsys.readouterr().err
    assert found in said
    assert len(said.strip().splitlines()) == 1

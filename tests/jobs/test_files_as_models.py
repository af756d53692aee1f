"""A file or folder that is no model ends before a sweep begins, planned or run; one that is a model is planned as one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.broken import CANARY, more_files
from support.original_names import UNET, single_file_of

from research import cli
from research.errors import ConfigError, ModelError
from research.jobs.preflight import check_model
from research.models.inspect.inspect_model import inspect_model
from research.testing.random_pipelines import save_flux

SETTINGS = {"allow_pickle": False, "loras": None, "config": None}


def planned(path: Path, **more) -> None:
    check_model(
        {"model": {"path": str(path), **SETTINGS, **more}, "scheduler": {"options": {}}, "steps": 2, "task": {}}
    )


@pytest.fixture(scope="module")
def flux(tmp_path_factory) -> Path:
    """A folder with ``whole`` (a directory), ``configs`` (of it), ``model.safetensors`` and ``network.safetensors``."""
    folder = tmp_path_factory.mktemp("flux")
    directory = save_flux(folder / "whole")
    shutil.copytree(directory, folder / "configs", ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = single_file_of(directory)
    save_file(tensors, folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k.startswith(UNET)}, folder / "network.safetensors")
    torch.save({"state_dict": tensors}, folder / "model.ckpt")
    return folder


@pytest.mark.brought(
    "Checkpoint files",
    "a LoRA, a ControlNet, an IP-Adapter, a textual inversion, an upscaler",
    "refused",
    "it changes a model or goes with one, and is none; before a sweep begins",
)
@pytest.mark.brought(
    "Checkpoint files",
    "an HTML page, a git-lfs pointer, an empty or cut file, a picture, GGUF, a zip",
    "refused",
    "what it is, by its content and not by its name",
)
def test_planning_refuses_what_inspecting_refuses(tmp_path, monkeypatch):  # fmt: skip
    """In the same words, for everything that is no model; and nothing in it is run."""
    monkeypatch.setenv(CANARY, str(tmp_path / "ran"))
    folder = tmp_path / "files"
    for name, (path, say) in more_files(folder).items():
        with pytest.raises(ModelError) as caught:
            planned(path)
        message = str(caught.value)
        assert "\n" not in message, name
        assert message.startswith("model.path: "), name
        found = inspect_model(path)
        assert found.verdict == "no", name
        assert found.problems[0].rstrip(".") in message or say in message, (name, message, found.problems)
    assert not (tmp_path / "ran").exists()


@pytest.mark.brought(
    "Checkpoint files",
    "one component of a directory, or its model_index.json or another of its configs alone",
    "refused",
    "give the directory of the whole pipeline",
)
def test_parts_of_a_directory_alone(flux):  # fmt: skip
    for name, say in {
        "transformer/diffusion_pytorch_model.safetensors": "a diffusers transformer",
        "text_encoder_2/model.safetensors": "T5",
        "vae/diffusion_pytorch_model.safetensors": "VAE",
        "model_index.json": "give the directory it is in",
        "scheduler/scheduler_config.json": "the directory of the whole pipeline",
        "transformer": "one component",
        "tokenizer": "tokenizer",
        "scheduler": "scheduler",
    }.items():
        with pytest.raises(ModelError, match=say):
            planned(flux / "whole" / name)


def test_a_folder_with_a_file_that_is_no_model(tmp_path):
    save_file({"unet.up_blocks.0.lora.up.weight": torch.zeros(2, 2)}, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(ModelError, match="is a LoRA"):
        planned(tmp_path)


@pytest.mark.parametrize("mode", [[], ["--plan"]])
def test_a_sweep_does_not_begin(mode, tmp_path, capsys):
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\n")
    line = ["-m", "model=custom", f"model.path={tmp_path}/pointer.safetensors", "guidance.scale=1,2,3", "prompts=[a]"]
    assert cli.run([*line, "metrics=none", "tracker=none", f"output_dir={tmp_path}/out", *mode]) == 2
    said = capsys.readouterr()
    assert "git lfs pull" in said.out + said.err
    assert not (tmp_path / "out").exists()


def test_what_goes_with_a_file_is_looked_at(flux, tmp_path):
    """Its configs, the parts that it lacks, and leave to read a pickle."""
    planned(flux / "model.safetensors", config=str(flux / "configs"))
    planned(flux / "network.safetensors", config=str(flux / "whole"))
    planned(flux / "model.ckpt", config=str(flux / "configs"), allow_pickle=True)
    (tmp_path / "page.html").write_text("<!doctype html>")
    shutil.copytree(flux / "configs", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "tokenizer")
    for arguments, say in (
        ({"path": flux / "network.safetensors"}, r"VAE.*model\.config"),
        ({"path": flux / "network.safetensors", "config": str(flux / "configs")}, "no weights of its text_encoder"),
        ({"path": flux / "model.ckpt", "config": str(flux / "configs")}, "allow_pickle"),
        ({"path": flux / "model.safetensors", "config": str(tmp_path / "gone")}, r"model\.config: .* does not exist"),
        (
            {"path": flux / "model.safetensors", "config": str(tmp_path / "page.html")},
            r"model\.config: .* is no directory",
        ),
        ({"path": flux / "model.safetensors", "config": str(flux / "whole/vae")}, r"model\.config: .* one component"),
        ({"path": flux / "model.safetensors", "config": str(tmp_path / "cut")}, r"model\.config: .*tokenizer"),
        (
            {"path": flux / "model.safetensors", "config": "emoji"},
            r"model\.config: .* accepted with a single file of FLUX",
        ),
    ):
        with pytest.raises(ModelError, match=say):
            planned(**arguments)
    with pytest.raises(ConfigError, match="no single file"):
        planned(flux / "whole", config=str(flux / "configs"))


@pytest.mark.slow
def test_a_run_of_a_file(flux, tmp_path, capsys):
    """Planned in full, run, and found again; what the file says of itself is in the record and in the job's id."""
    marked = tmp_path / "marked.safetensors"
    save_file(load_file(flux / "model.safetensors"), marked)
    line = [
        "model=custom",
        f"model.path={marked}",
        f"model.config={flux}/configs",
        "guidance=none",
        "steps=2",
        "prompts=[a]",
    ]
    line += ["metrics=none", "tracker=none", f"output_dir={tmp_path}/out", "task.height=16", "task.width=16"]
    assert cli.run([*line, "--plan=full"]) == 0
    assert cli.run(line) == 0
    (record,) = (tmp_path / "out").glob("**/result.json")
    assert json.loads(record.read_text())["images"]
    assert cli.run([*line, "--plan"]) == 0
    assert "1 done" in capsys.readouterr().out
    assert cli.run([*line, "task.height=17", "--plan=full"]) == 2

"""Directories made from good ones by random changes: `load_model` and ``research-inspect`` give one verdict on each, and what
diffusers opens is refused for a reason that docs/reference/inputs.md has."""

from __future__ import annotations

import json
import random
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from research import load_model
from research.errors import ModelError
from research.models.inspect.inspect_model import inspect_model
from research.testing.random_pipelines import BUILDERS

COUNT, BY_DEFAULT = 300, 6
SEEDS = ("sd", "pixel", *BUILDERS)
# what a refusal may say of a directory that diffusers opens: rows of docs/reference/inputs.md
REASONS = (
    "mixes variants",
    "is of class",  # another class of diffusers than the index names
    "which does not hold it",  # an index of shards, of a tensor
    "does not name",
    "has no place",
    "there is no place",
    "lack ",
    "do not fit",
    "not finite",
    "told more than a text",
    "pickled weights",
    "scaled noise levels",
    "which is not supported",
    "transformers_weights",
    "whole numbers",
    "names no pipeline",
    "sample_size",
    "does not run",
    "input channels",
    "numbers a token",
    "numbers besides",
    "accepted:",  # values of a scheduler, classes of a part
    "accepted is",
    "has tokens up to",
)
Change = Callable[[Path, random.Random], object]


def _weights(directory: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(directory.rglob("*.safetensors")))


def _config(directory: Path, rng: random.Random) -> Path:
    return rng.choice(sorted([*directory.glob("*/config.json"), *directory.glob("scheduler/*.json")]))


def _edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def _store(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})


def drop_key(directory: Path, rng: random.Random) -> None:
    _edit(_config(directory, rng), lambda c: c.pop(rng.choice(sorted(c))))


def change_class(directory: Path, rng: random.Random) -> None:
    names = ["MyModel", "UNet2DModel", "FlaxUNet2DConditionModel", "AutoencoderTiny", None]
    _edit(_config(directory, rng), lambda c: c.update(_class_name=rng.choice(names)))


def change_pipeline(directory: Path, rng: random.Random) -> None:
    names = [
        "StableDiffusionControlNetPipeline",
        "FluxPipeline",
        "MyPipeline",
        ["mine", "Mine"],
        "PixArtAlphaPAGPipeline",
        "DiTPipeline",
    ]
    _edit(directory / "model_index.json", lambda c: c.update(_class_name=rng.choice(names)))


def change_part(directory: Path, rng: random.Random) -> None:
    def change(index: dict[str, Any]) -> None:
        name = rng.choice([key for key, value in index.items() if isinstance(value, list) and len(value) == 2])
        index[name] = rng.choice([[None, None], ["diffusers", "Strange"], ["transformers", "CLIPTextModel"]])

    _edit(directory / "model_index.json", change)


def drop_file(directory: Path, rng: random.Random) -> None:
    rng.choice(sorted(file for file in directory.rglob("*") if file.is_file())).unlink()


def drop_folder(directory: Path, rng: random.Random) -> None:
    shutil.rmtree(rng.choice(sorted(each for each in directory.iterdir() if each.is_dir())))


def stray_file(directory: Path, rng: random.Random) -> None:
    folder = rng.choice(sorted(each for each in directory.iterdir() if each.is_dir()))
    (folder / rng.choice(["notes.txt", "onnx.json", "model.bin", "optimizer.pt"])).write_text("{}")


def prefix(directory: Path, rng: random.Random) -> None:
    start = rng.choice(["_orig_mod.", "module.", "model."])
    file = _weights(directory, rng)
    _store(file, {start + name: tensor for name, tensor in load_file(file).items()})


def mix_dtypes(directory: Path, rng: random.Random) -> None:
    file = _weights(directory, rng)
    dtype = rng.choice([torch.float16, torch.bfloat16])
    _store(file, {name: t.to(dtype) if rng.random() < 0.5 else t for name, t in load_file(file).items()})


def drop_tensor(directory: Path, rng: random.Random) -> None:
    file = _weights(directory, rng)
    tensors = load_file(file)
    tensors.pop(rng.choice(sorted(tensors)))
    _store(file, tensors)


def poison(directory: Path, rng: random.Random) -> None:
    file = _weights(directory, rng)
    tensors = load_file(file)
    tensors[rng.choice(sorted(tensors))].view(-1)[0] = float("nan")
    _store(file, tensors)


def truncate(directory: Path, rng: random.Random) -> None:
    file = _weights(directory, rng)
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


def variant(directory: Path, rng: random.Random) -> None:
    file = _weights(directory, rng)
    target = file.with_name(f"{file.stem}.{rng.choice(['fp16', 'ema'])}.safetensors")
    file.rename(target) if rng.random() < 0.5 else shutil.copy(file, target)


def shards(directory: Path, rng: random.Random) -> None:
    file = _weights(directory, rng)
    tensors, where = load_file(file), {}
    for place in (0, 1):
        half = {name: tensor for number, (name, tensor) in enumerate(sorted(tensors.items())) if number % 2 == place}
        name = f"{file.stem}-0000{place + 1}-of-00002.safetensors"
        _store(file.with_name(name), half)
        where |= dict.fromkeys(half, name)
    content = {"weight_map": where, "metadata": {}} if rng.random() < 0.5 else {"weight_map": where}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(content))
    if rng.random() < 0.5:
        file.unlink()
    if rng.random() < 0.3:
        file.with_name(f"{file.stem}-00001-of-00002.safetensors").unlink()


def flatten(directory: Path, rng: random.Random) -> None:
    folders = [each for each in sorted(directory.iterdir()) if each.name in ("unet", "transformer", "scheduler")]
    for folder in folders[: rng.choice([1, 2])]:
        for file in folder.iterdir():
            file.rename(directory / file.name)
        folder.rmdir()


CHANGES: tuple[Change, ...] = (
    drop_key, drop_key, change_class, change_pipeline, change_part, drop_file, drop_folder, stray_file, prefix, mix_dtypes,
    drop_tensor, poison, truncate, variant, variant, shards, shards, flatten,
)  # fmt: skip


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    from support.tiny_models import save_tiny_pixel, save_tiny_sd

    made: dict[str, Path] = {}
    builders = {"sd": save_tiny_sd, "pixel": save_tiny_pixel, **BUILDERS}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = builders[name](tmp_path_factory.mktemp("seeds") / re.sub(r"\W", "-", name))
        return made[name]

    return get


def _of_diffusers(directory: Path) -> bool:
    """Whether diffusers opens it by itself."""
    import diffusers

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            diffusers.DiffusionPipeline.from_pretrained(directory, local_files_only=True, use_safetensors=True)
    except Exception:
        return False
    return True


@pytest.mark.brought(
    "Directories",
    "random changes of good directories of all families",
    "accepted",
    "`load_model` and `research-inspect` give one verdict on each",
)
@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=[pytest.mark.slow] * (n >= BY_DEFAULT)) for n in range(COUNT)]
)
def test_one_verdict(number, seeds, tmp_path):
    rng = random.Random(number)
    # building a pipeline costs more than looking at it: one family more by default
    name = (
        ("dit" if number % 15 == 0 else "sd" if number % 2 else "pixel")
        if number < BY_DEFAULT
        else SEEDS[number % len(SEEDS)]
    )
    directory = tmp_path / "model"
    shutil.copytree(seeds(name), directory)
    changes = [rng.choice(CHANGES) for _ in range(rng.choice([1, 1, 2]))]
    for change in changes:
        try:
            change(directory, rng)
        except (IndexError, OSError, ValueError, KeyError):  # nothing left to change
            continue
    found = inspect_model(directory)
    told = f"{name}: {[each.__name__ for each in changes]}: {found.verdict} {found.reason}"
    try:
        load_model(directory, device="cpu")
        refused = None
    except ModelError as error:
        refused = str(error)
        assert "\n" not in refused, told
    assert (refused is None) == (found.verdict == "safe"), f"{told}; load_model: {refused}"
    if found.verdict == "no":
        assert str(refused).removeprefix("model.path: ") == found.reason, told
        if _of_diffusers(directory):
            assert any(reason in str(refused) for reason in REASONS), told

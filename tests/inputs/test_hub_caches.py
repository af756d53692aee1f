# ruff: noqa: E501
"""Hub ids without a network: what the hub's cache holds of a model is enough, or what is missing is named. One verdict of
`load_model`, ``research-inspect`` and plans on each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.broken import TEXT, UNET, VAE, to_variant
from support.hub_cache import cache
from support.tiny_models import edit_json

from research import cli, load_model
from research.errors import ConfigError, ModelError
from research.models.inspect.inspect_model import inspect_model

mark = pytest.mark


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> Path:
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def opened(name: str, **arguments):
    model = load_model(name, device="cpu", **arguments)
    found = inspect_model(name, **arguments)
    assert (found.verdict, found.reason) == ("safe", None)
    return model


def both_variants(directory: Path) -> None:
    whole = {file: (directory / file).read_bytes() for file in (UNET, VAE, TEXT)}
    to_variant(directory)
    for file, data in whole.items():
        (directory / file).write_bytes(data)


def with_extractor(directory: Path) -> None:
    (directory / "feature_extractor").mkdir()
    (directory / "feature_extractor/preprocessor_config.json").write_text("{}")
    edit_json(directory / "model_index.json", feature_extractor=["transformers", "CLIPImageProcessor"])


# fmt: off
PARTIAL = [
    pytest.param(both_variants, lambda f: f.endswith("model.safetensors"), id="one variant",
        marks=mark.brought("Hub ids and caches", "of plain and fp16 weights, one kind alone in the cache", "accepted", "")),
    pytest.param(lambda d: (d / "unet/training_args.json").write_text("{}"), lambda f: f.endswith("args.json"), id="stray",
        marks=mark.brought("Hub ids and caches", "files that the repository lists and no pipeline reads, not in the cache", "accepted", "")),
    pytest.param(with_extractor, lambda f: f.startswith("feature_extractor"), id="extractor",
        marks=mark.brought("Hub ids and caches", "a feature extractor or safety checker that was not fetched", "accepted", "")),
    pytest.param(lambda d: (d / "unet/diffusion_pytorch_model.bin").write_bytes(b"PK"), lambda f: f.endswith(".bin"), id="pickles",
        marks=mark.brought("Hub ids and caches", "pickles that the repository lists beside safetensors, not in the cache", "accepted", "")),
]
# fmt: on


@pytest.mark.parametrize(("change", "absent"), PARTIAL)
@pytest.mark.spread(1)
def test_what_is_complete_for_a_pipeline_opens(change, absent, hub, sd_directory, copied):
    source = copied(sd_directory)
    change(source)
    commit = cache(hub, "o/n", source, absent)
    for allow in (False, True):
        assert load_model("o/n", device="cpu", allow_pickle=allow).commit == commit
    opened("o/n")


@pytest.mark.brought(
    "Hub ids and caches",
    "a cache that lacks what the pipeline needs",
    "refused",
    "which part, in plans too; the cache holds no more of it",
)
def test_what_is_missing_is_named(hub, sd_directory, tmp_path, capsys):
    cache(hub, "o/cut", sd_directory, lambda f: f == VAE)
    with pytest.raises(ModelError, match=r"vae has no weights.*the hub's cache holds no more of o/cut") as caught:
        load_model("o/cut", device="cpu")
    assert str(caught.value).removeprefix("model.path: ") == inspect_model("o/cut").reason
    words = [
        "model=custom",
        "model.path=o/cut",
        "metrics=none",
        "tracker=none",
        "prompts=[a]",
        f"output_dir={tmp_path / 'out'}",
    ]
    assert cli.run(words) == 2
    assert "vae has no weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.brought(
    "Hub ids and caches",
    "`owner/name`, `owner/name@revision`, the address of a model's page, `models--owner--name`, and the folders that the cache keeps",
    "accepted",
    "",
)
def test_every_way_to_say_a_model(hub, pixel_directory):
    commit = cache(hub, "o/n", pixel_directory)
    cache(hub, "o/n", pixel_directory, ref="v1")
    folder = hub / "models--o--n"
    for name in (
        "o/n@main",
        f"o/n@{commit}",
        "https://huggingface.co/o/n",
        "https://huggingface.co/o/n/tree/main",
        "models--o--n",
        str(folder),
        str(folder / "snapshots"),
        str(folder / "snapshots" / commit),
    ):
        assert opened(name).commit == commit
    assert opened("o/n", revision="v1").commit != commit
    assert opened(str(folder), revision="v1").commit != commit
    for wrong in ("o/n@v2", "o/n@v1"):
        with pytest.raises(ModelError):
            load_model(wrong, revision="main", device="cpu")


@pytest.mark.brought("Hub ids and caches", "a model in a folder of a repository, `model.subfolder`", "accepted", "")
def test_a_subfolder(hub, pixel_directory, tmp_path):
    shutil.copytree(pixel_directory, tmp_path / "source" / "inner")
    cache(hub, "o/deep", tmp_path / "source")
    assert (
        opened("o/deep", subfolder="inner").weights_sha256 == load_model(pixel_directory, device="cpu").weights_sha256
    )


@pytest.mark.slow
@pytest.mark.brought("Hub ids and caches", "a flat pixel model by its hub id", "accepted", "")
def test_a_flat_layout_by_id_on_the_command_line(hub, pixel_directory, tmp_path):
    from test_directories import flat

    commit = cache(hub, "o/flat", flat(pixel_directory, tmp_path / "flat"))
    words = ["model=custom", "model.path=o/flat", "task=unconditional", "scheduler=ddpm", "guidance=none", "steps=2"]
    assert cli.run([*words, "metrics=none", "tracker=none", f"output_dir={tmp_path / 'out'}"]) == 0
    (file,) = (tmp_path / "out").rglob("result.json")
    assert json.loads(file.read_text())["model_commit"] == commit


@pytest.mark.brought(
    "Hub ids and caches",
    "a CLIP or vision model for metrics of which the cache holds config and weights",
    "accepted",
    "",
)
@pytest.mark.brought("Hub ids and caches", "one without its weights", "refused", "which file the cache lacks")
def test_models_of_metrics(hub, tmp_path):
    from research.clip import fetch
    from research.zoo import zoo_path

    source = tmp_path / "clip"
    (source / "onnx").mkdir(parents=True)
    (source / "onnx/config.json").write_text("{}")
    for file in zoo_path("emoji-eval").iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    commit = cache(hub, "o/clip", source, lambda f: f.startswith("onnx/"))
    assert fetch("o/clip", "metrics.clip_score.model").name == commit
    cache(hub, "o/no-weights", source, lambda f: f.endswith(".safetensors"))
    with pytest.raises(ConfigError, match=r"lacks model\.safetensors in the hub's cache"):
        fetch("o/no-weights", "metrics.clip_score.model")


def test_revision_and_variant_are_part_of_a_job():
    from research.jobs.identity import model_content

    assert model_content("o/n") == "hub:o/n"
    assert model_content("o/n@v1") == model_content("o/n", revision="v1") == "hub:o/n@v1"
    assert model_content("https://huggingface.co/o/n") == "hub:o/n"
    assert model_content("o/n", subfolder="a") == "hub:o/n/a"

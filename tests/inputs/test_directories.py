# ruff: noqa: E501
"""Directories as people have them: what opens, what is read otherwise than it stands there and said, and what is refused. One verdict
of `load_model` and ``research-inspect`` on each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.broken import TEXT, UNET, VAE, change_header, shard, to_variant
from support.tiny_models import edit_json

from research import LoopSampler, load_model
from research.errors import ConfigError, ModelError
from research.guidance import CFG
from research.models.inspect.inspect_model import inspect_model
from research.tasks import TextToImage, Unconditional

mark = pytest.mark


def opened(directory: Path, says: str = "", **arguments):
    """The model, which both doors open with these words."""
    model = load_model(directory, device="cpu", **arguments)
    found = inspect_model(directory, **arguments)
    assert (found.verdict, found.reason) == ("safe", None)
    for notes in (found.notes, model.notes):
        assert says in "; ".join(notes)
    return model


def refusal(directory: Path) -> str:
    """Why neither opens it."""
    found = inspect_model(directory)
    assert found.verdict == "no"
    with pytest.raises(ModelError) as caught:
        load_model(directory, device="cpu")
    assert str(caught.value).removeprefix("model.path: ") == found.reason
    return str(caught.value)


def index(**changes) -> Callable[[Path], object]:
    return lambda d: edit_json(d / "model_index.json", **changes)


def config(part: str, *without: str, **changes) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        file = directory / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        content = {key: value for key, value in json.loads(file.read_text()).items() if key not in without}
        file.write_text(json.dumps({**content, **changes}))

    return change


def renamed(file: str, rename: Callable[[str], str]) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        tensors = load_file(directory / file)
        save_file({rename(name): tensor for name, tensor in tensors.items()}, directory / file, {"format": "pt"})

    return change


def one_file_beside_shards(directory: Path) -> None:
    """An index that names shards which are not there: transformers never reads it."""
    names = dict.fromkeys(load_file(directory / TEXT), "model-00001-of-00001.safetensors")
    (directory / f"{TEXT}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def added_word(directory: Path) -> None:
    rows = json.loads((directory / "text_encoder/config.json").read_text())["vocab_size"]
    (directory / "tokenizer/added_tokens.json").write_text(json.dumps({"<new>": rows}))
    file = directory / "tokenizer/tokenizer.json"
    if file.is_file():
        content = json.loads(file.read_text())
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        content["added_tokens"].append({"id": rows, "content": "<new>", **flags})
        file.write_text(json.dumps(content))


def half_of_a_part(directory: Path) -> None:
    tensors = load_file(directory / UNET)
    mixed = {name: tensor.half() if place % 2 else tensor for place, (name, tensor) in enumerate(tensors.items())}
    save_file(mixed, directory / UNET, {"format": "pt"})


# fmt: off
OPEN = [
    pytest.param(index(_class_name="StableDiffusionControlNetPipeline", controlnet=["diffusers", "ControlNetModel"]), "left out: controlnet",
        marks=mark.brought("Directories", "an index that names another pipeline with the parts of a family (ControlNet, PAG, Safe, Panorama, ...)", "repaired", "sampled as the family's pipeline; left out: the parts that it has no use for")),
    pytest.param(index(_class_name=["my_pipeline", "MyPipeline"]), "MyPipeline",
        marks=mark.brought("Directories", "an index that names a pipeline of one's own, as a list of file and class", "repaired", "sampled as the family's pipeline of the same parts; no code of it is run")),
    pytest.param(index(feature_extractor=["transformers", "CLIPImageProcessor"]), "",
        marks=mark.brought("Directories", "a feature extractor or a safety checker that is named and not there", "accepted", "")),
    pytest.param(config("unet", "in_channels", "out_channels"), "",
        marks=mark.brought("Directories", "configs that leave out what stands at the default of its class", "accepted", "")),
    pytest.param(config("vae", "latent_channels"), "", id="vae defaults"),
    pytest.param(config("unet", _class_name="FlaxUNet2DConditionModel"), "",
        marks=mark.brought("Directories", "Flax class names in configs", "accepted", "")),
    pytest.param(config("vae", _class_name="AutoKL"), "",
        marks=mark.brought("Directories", "a config of a class that diffusers does not have, whose weights fit the class of the index", "accepted", "")),
    pytest.param(config("scheduler", "_class_name"), "", id="scheduler without class"),
    pytest.param(config("scheduler", _class_name="MyScheduler"), "MyScheduler, and model_index.json DDIMScheduler, which counts",
        marks=mark.brought("Directories", "a scheduler's config of no class, or of another than the index names", "repaired", "the class of the index counts")),
    pytest.param(config("text_encoder", num_hidden_layers=1), "which are left out",
        marks=mark.brought("Directories", "a text encoder of less layers than its weights (clip skip by config)", "repaired", "the layers above are left out")),
    pytest.param(added_word, "<new>",
        marks=mark.brought("Directories", "words added to a tokenizer behind the rows of its text encoder", "repaired", "no prompt may hold them; one that does is refused by name")),
    pytest.param(lambda d: to_variant(d, (UNET,)), "unet fp16",
        marks=mark.brought("Directories", "weights of which one part has a variant alone and the others plain files", "repaired", "the variant of each part")),
    pytest.param(half_of_a_part, "", marks=mark.brought("Directories", "a part of which some tensors are of half precision", "accepted", "")),
    pytest.param(renamed(UNET, lambda name: f"_orig_mod.{name}"), "as in a wrapper",
        marks=mark.brought("Directories", "weights named as in a wrapper: `_orig_mod.` of torch.compile, `module.` of data parallelism", "repaired", "read without it; which names is said")),
    pytest.param(renamed(VAE, lambda name: f"module.{name}"), "vae: weights are named", id="module."),
    pytest.param(renamed(TEXT, lambda name: f"module._orig_mod.{name}"), "text_encoder: weights", id="both wrappers"),
    pytest.param(renamed(UNET, lambda name: name.replace("resnets.0.", "resnets.0._orig_mod.")), "unet: weights", id="compiled blocks"),
    pytest.param(one_file_beside_shards, "", marks=mark.brought("Directories", "one file of weights beside an index of shards", "accepted", "the file of a text encoder, the shards of a network, as the libraries do; the hash is of what was read")),
    pytest.param(lambda d: shard(d, lambda i: i.pop("metadata")), "", marks=mark.brought("Directories", "an index of shards without metadata", "accepted", "")),
    pytest.param(lambda d: (d / "unet/training_args.json").write_text("{}"), "", marks=mark.brought("Directories", "stray files beside those that are needed", "accepted", "")),
]
SHUT = [
    pytest.param(index(_class_name="ConsistencyModelPipeline"), "scaled noise levels",
        marks=mark.brought("Directories", "a pipeline whose network is asked another way (consistency models, score SDE)", "refused", "it has the parts of a family and another meaning")),
    pytest.param(index(_class_name="HunyuanDiTPipeline", transformer=["diffusers", "HunyuanDiT2DModel"], unet=[None, None]), "those of no other",
        marks=mark.brought("Directories", "a pipeline of no family", "refused", "its parts are those of no other; the pipelines that open are named")),
    pytest.param(lambda d: (to_variant(d, (UNET,)), to_variant(d, (VAE,), "ema")), "mixes variants",
        marks=mark.brought("Directories", "parts of different variants, none with plain files", "refused", "half one and half another is no model")),
    pytest.param(config("unet", _class_name="UNet3DConditionModel"), "is of class UNet3DConditionModel",
        marks=mark.brought("Directories", "a config of another class of diffusers than the index names", "refused", "the config would be read as what it is not")),
    pytest.param(config("unet", class_embed_type="identity"), "told more than a text",
        marks=mark.brought("Directories", "a UNet that is told more than a text (image embeddings, classes)", "refused", "which key of its config says so")),
    pytest.param(renamed(UNET, lambda name: name.replace("conv_in.", "conv_inn.")), "lack",
        marks=mark.brought("Directories", "weights that lack a tensor, or hold one that has no place", "refused", "diffusers goes on with random values or without it")),
    pytest.param(lambda d: change_header(d / UNET, lambda h: h.update({"_orig_mod.conv_in.bias": h["conv_in.bias"]})), "", id="two of one name"),
    pytest.param(lambda d: shard(d, lambda i: i["weight_map"].update({"ghost": i["weight_map"]["conv_in.bias"]})), "ghost",
        marks=mark.brought("Directories", "an index of shards that names tensors which the shards do not hold, or leaves some out", "refused", "which tensor; diffusers goes on with random values")),
    pytest.param(config("text_encoder", transformers_weights="other.safetensors"), "transformers_weights", id="weights by config"),
]
# fmt: on


@pytest.mark.parametrize(("change", "says"), OPEN)
@pytest.mark.spread(4)
def test_it_opens(change, says, sd_directory, copied):
    directory = copied(sd_directory)
    change(directory)
    model = opened(directory, says)
    if says:
        result = LoopSampler(model, scheduler="ddim", guidance=CFG(3.0)).sample(TextToImage("a"), seeds=[0], steps=1)
        assert any(says in warning for warning in result.warnings)


@pytest.mark.parametrize(("change", "says"), SHUT)
@pytest.mark.spread(4)
def test_it_does_not_open(change, says, sd_directory, copied):
    directory = copied(sd_directory)
    change(directory)
    assert says in refusal(directory)


def test_names_of_wrappers_make_no_difference(sd, sd_directory, copied):
    directory = copied(sd_directory)
    renamed(UNET, lambda name: f"module.{name}")(directory)
    model = opened(directory, "module.")
    for name, weight in sd.unet.state_dict().items():
        assert torch.equal(model.unet.state_dict()[name], weight)


def test_the_hash_is_of_what_was_read(sd, sd_directory, copied):
    directory = copied(sd_directory)
    one_file_beside_shards(directory)
    assert opened(directory).weights_sha256 == sd.weights_sha256


@pytest.mark.slow
@pytest.mark.brought(
    "Directories", "a prompt with a word that the tokenizer has and the text encoder has not", "refused", "the word"
)
def test_a_word_that_the_encoder_has_not(sd_directory, copied):
    directory = copied(sd_directory)
    added_word(directory)
    sampler = LoopSampler(opened(directory, "<new>"), scheduler="ddim", guidance=CFG(3.0))
    with pytest.raises(ConfigError, match="<new>"):
        sampler.sample(TextToImage("a <new> b"), seeds=[0], steps=1)


@pytest.mark.brought(
    "Directories",
    "sample_size below 64 in a UNet's config of before diffusers 0.9",
    "repaired",
    "64, as its pipeline reads it",
)
@pytest.mark.brought(
    "Directories", "a config without sample_size", "accepted", "height and width must be given; without them it says so"
)
def test_sample_size(sd_directory, copied):
    directory = copied(sd_directory)
    config("unet", sample_size=8, _diffusers_version="0.8.1")(directory)
    assert opened(directory, "means 64").latent_shape() == (4, 64, 64)
    config("unet", "sample_size")(directory)
    model = opened(directory)
    assert model.latent_shape(16, 16)[0] == 4
    with pytest.raises(ConfigError, match=r"task\.height: is missing"):
        model.latent_shape()


def flat(directory: Path, target: Path) -> Path:
    target.mkdir()
    shutil.copy(directory / "model_index.json", target)
    for part in ("unet", "scheduler"):
        for file in (directory / part).iterdir():
            shutil.copy(file, target)
    return target


@pytest.mark.brought(
    "Directories",
    "a pixel model whose config, weights and scheduler lie beside `model_index.json`, without folders",
    "accepted",
    "",
)
def test_a_flat_layout_is_the_same_model(pixel_directory, tmp_path):
    ours, given = opened(flat(pixel_directory, tmp_path / "flat")), load_model(pixel_directory, device="cpu")
    assert ours.weights_sha256 == given.weights_sha256
    one, two = (
        LoopSampler(model, scheduler="model").sample(Unconditional(), seeds=[0], steps=2).latents
        for model in (ours, given)
    )
    assert torch.equal(one, two)


@pytest.mark.brought(
    "Directories",
    "a pixel UNet that does not run: no sample_size, sides that its levels do not halve, other channels out than in",
    "refused",
    "what does not fit",
)
@pytest.mark.parametrize(
    ("changes", "says"), [({"sample_size": None}, "sample_size is None"), ({"sample_size": 7}, "does not run on 7 x 7")]
)
def test_a_pixel_network_that_does_not_run(changes, says, pixel_directory, copied):
    directory = copied(pixel_directory)
    config("unet", **changes)(directory)
    assert says in refusal(directory)


@pytest.mark.brought(
    "Directories",
    "a pixel UNet with learned sigmas, twice as many channels out as in",
    "repaired",
    "its last channels are left out",
)
def test_learned_sigmas(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        **blocks,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "p")
    model = opened(tmp_path / "p", "learned sigmas")
    assert LoopSampler(model, scheduler="ddim").sample(Unconditional(), seeds=[0], steps=2).latents.shape == (
        1,
        3,
        8,
        8,
    )


@pytest.mark.slow
@pytest.mark.brought(
    "Directories",
    "`model.variant` and `model.subfolder`, in Python `variant=` and `subfolder=`",
    "accepted",
    "the variant of the parts that have it, plain files of the others",
)
def test_variant_and_subfolder(sd_directory, copied, tmp_path):
    directory = copied(sd_directory)
    whole = (directory / UNET).read_bytes()
    to_variant(directory, (UNET,))
    (directory / UNET).write_bytes(whole)
    plain, half = opened(directory), opened(directory, "unet fp16", variant="fp16")
    assert plain.weights_sha256 != half.weights_sha256
    (tmp_path / "holder").mkdir()
    directory.rename(tmp_path / "holder" / "inner")
    assert opened(tmp_path / "holder", subfolder="inner").weights_sha256 == plain.weights_sha256
    for wrong, says in (
        ({"subfolder": "outer"}, "no folder 'outer'"),
        ({"subfolder": "../x"}, "model.subfolder"),
        ({"subfolder": "inner", "variant": "ema"}, "model.variant: found 'ema'"),
        ({"subfolder": "inner", "revision": "main"}, "model.revision: found 'main'"),
    ):
        with pytest.raises(ModelError, match=says):
            load_model(tmp_path / "holder", device="cpu", **wrong)
        assert says in str(inspect_model(tmp_path / "holder", **wrong).reason)


@pytest.mark.brought(
    "Directories", "`device=auto` on a Mac", "accepted", "MPS in float32; CUDA before it where there is one"
)
def test_auto_takes_mps_after_cuda(monkeypatch):
    from research.models.load import resolve_dtype_and_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_dtype_and_device("auto", "auto") == (torch.float32, torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_dtype_and_device("auto", "auto") == (torch.float16, torch.device("cuda"))

"""`load_model`: what it loads, and that whatever is wrong is one clear line that names what was found."""

from __future__ import annotations

import json
import os
import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from support.tiny_models import edit_json, save_tiny_sd

from research import LoopSampler, load_model
from research.errors import ConfigError, ModelError
from research.guidance import CFG
from research.tasks import TextToImage, Unconditional

pytestmark = pytest.mark.spread(2)

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def refusal(path, error: type[Exception] = ModelError, **arguments) -> str:
    """The message of the error that loading raises; it has to be one line."""
    with pytest.raises(error) as caught:
        load_model(path, **{"dtype": "float32", "device": "cpu", **arguments})
    message = str(caught.value)
    assert "\n" not in message.strip()
    assert len(message) < 1000  # with the names of all pipelines that are accepted
    assert re.match(r"model\.\w+: ", message), message
    return message


def to_pickle(component: Path) -> None:
    """Replace a component's safetensors by a pickle of the same weights."""
    (old,) = component.glob("*.safetensors")
    name = "pytorch_model.bin" if component.name == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save(load_file(old), component / name)
    old.unlink()


# --- what it gives


def test_a_stable_diffusion_directory(sd, sd_directory):
    assert (sd.family, sd.name) == ("unet-text", sd_directory.name)
    assert (sd.device.type, sd.dtype) == ("cpu", torch.float32)
    assert not any(module.training for module in sd.modules())
    written = UNet2DConditionModel.from_pretrained(sd_directory, subfolder="unet").state_dict()
    loaded = sd.unet.state_dict()
    assert written.keys() == loaded.keys()
    assert all(torch.equal(written[key], loaded[key]) for key in written)


def test_path_may_be_a_string_or_relative(sd_directory, monkeypatch):
    monkeypatch.chdir(sd_directory.parent)
    model = load_model(f"./{sd_directory.name}", device="cpu")
    assert model.weights_sha256 == load_model(str(sd_directory), device="cpu").weights_sha256


def test_weights_hash_is_of_the_content(sd, sd_directory, copied):
    twin = copied(sd_directory, "elsewhere")
    assert load_model(twin, device="cpu").weights_sha256 == sd.weights_sha256
    assert re.fullmatch(r"[0-9a-f]{64}", sd.weights_sha256)
    for file in (UNET, VAE, TEXT):
        changed = copied(sd_directory, f"changed-{file.partition('/')[0]}")
        tensors = load_file(changed / file)
        first = sorted(tensors)[0]
        tensors[first] = tensors[first] + 1e-3
        save_file(tensors, changed / file, metadata={"format": "pt"})
        assert load_model(changed, device="cpu").weights_sha256 != sd.weights_sha256, file


@pytest.mark.parametrize("name", ["sd_directory", "pixel_directory"])
def test_loads_and_samples_without_a_network(name, request, no_network):
    model = load_model(request.getfixturevalue(name), device="cpu")
    task = TextToImage("a cat") if name == "sd_directory" else Unconditional()
    LoopSampler(model, scheduler="ddim").sample(task, seeds=[0], steps=2)
    assert no_network == []


@pytest.mark.parametrize("dtype", ["bf16", "float16", torch.bfloat16])
@pytest.mark.spread(1)
def test_half_precision_on_a_cpu_gives_finite_pictures(sd_directory, dtype):
    model = load_model(sd_directory, dtype=dtype, device="cpu")
    assert model.dtype in (torch.bfloat16, torch.float16)
    for scheduler in ("ddim", "dpmpp_2m", "ddpm", "heun", "unipc"):
        result = LoopSampler(model, scheduler=scheduler, guidance=CFG(3.0)).sample(
            TextToImage("a cat"), seeds=[0, 1], steps=3
        )
        assert torch.isfinite(result.latents).all(), scheduler
        assert result.latents.dtype == torch.float32
        assert len({image.tobytes() for image in result.images}) == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_draws_the_same_noise(sd, sd_directory, dtype):
    half = load_model(sd_directory, dtype=dtype, device="cpu")
    task = TextToImage("a cat")
    short, full = (LoopSampler(m, scheduler="euler_a").sample(task, seeds=[3], steps=2) for m in (half, sd))
    error = (short.latents - full.latents).norm() / full.latents.norm()
    assert error < 0.05  # 0.93 with noise drawn in half precision


def test_auto_is_float32_on_a_cpu(sd_directory):
    assert load_model(sd_directory, device="cpu").dtype == torch.float32


def test_fp16_weights_on_disk_load_as_float32(sd_directory, copied):
    directory = copied(sd_directory)
    for file in (UNET, VAE, TEXT):
        half = {key: value.half() for key, value in load_file(directory / file).items()}
        save_file(half, directory / file, metadata={"format": "pt"})
    model = load_model(directory, device="cpu")
    assert {p.dtype for module in model.modules() for p in module.parameters()} == {torch.float32}


def test_sharded_weights_load(sd, sd_directory, copied):
    directory = copied(sd_directory)
    (directory / UNET).unlink()
    UNet2DConditionModel.from_pretrained(sd_directory, subfolder="unet").save_pretrained(
        directory / "unet", max_shard_size="40KB"
    )
    assert len(list((directory / "unet").glob("*.safetensors"))) > 1
    model = load_model(directory, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.unet.parameters(), sd.unet.parameters(), strict=True))


def test_a_tokenizer_that_says_no_length_is_cut_to_the_encoder(sd, sd_directory, copied):
    directory = copied(sd_directory)
    edit_json(directory / "tokenizer" / "tokenizer_config.json", model_max_length=None)
    model = load_model(directory, device="cpu")
    assert model.text.max_tokens == sd.text.max_tokens
    assert torch.equal(model.text.encode(["a cat"]), sd.text.encode(["a cat"]))


# --- where nothing is


@pytest.mark.parametrize("path", ["no-such-model", "./no/such/model", "/no/such/model", "a b c", "../nowhere"])
def test_a_path_that_does_not_exist(path, no_network):
    assert repr(path) in refusal(path)
    assert no_network == []


def test_an_empty_path():
    assert "empty" in refusal("")


@pytest.mark.parametrize("path", [None, 7, ["emoji"], True])
def test_a_path_that_is_none(path):
    assert repr(path) in refusal(path)


def test_a_hub_id_offline_fails_at_once_and_asks_no_network(no_network):
    start = time.perf_counter()
    message = refusal("nobody-at-all/no-such-model", offline=True)
    assert time.perf_counter() - start < 5
    assert "nobody-at-all/no-such-model" in message
    assert "offline" in message
    assert no_network == []


def test_a_hub_id_that_cannot_be_reached(no_network, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    message = refusal("nobody-at-all/no-such-model", offline=False)
    assert "nobody-at-all/no-such-model" in message
    assert no_network, "the test would say nothing if nothing was tried"


def test_a_directory_without_an_index(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    message = refusal(tmp_path)
    assert str(tmp_path) in message
    assert "model_index.json" in message
    assert "notes.txt" in message


def test_a_single_file(tmp_path):
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"x")
    assert str(file) in refusal(file)


# --- what is there is broken


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{not json", "JSON"),
        ("", "JSON"),
        ("[1, 2]", "JSON object"),
        ("{}", "_class_name"),
        ('{"_class_name": 3}', "_class_name"),
        ('{"_class_name": "FluxPipeline"}', "names no transformer, which its pipeline needs"),
        (
            '{"_class_name": "StableDifusionPipeline"}',
            "a StableDifusionPipeline, which is not supported, and its parts are",
        ),
    ],
)
def test_an_index_that_is_no_good(tmp_path, content, says):
    (tmp_path / "model_index.json").write_text(content)
    message = refusal(tmp_path)
    assert str(tmp_path) in message
    assert says in message


def test_an_index_that_is_no_text(tmp_path):
    (tmp_path / "model_index.json").write_bytes(b"\xff\xfe\x00\x81")
    assert str(tmp_path) in refusal(tmp_path)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component(sd_directory, copied, part):
    directory = copied(sd_directory)
    for file in sorted((directory / part).iterdir()):
        file.unlink()
    (directory / part).rmdir()
    message = refusal(directory)
    assert str(directory) in message
    assert part in message


@pytest.mark.parametrize(
    "file",
    [
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    ],
)
@pytest.mark.parametrize("content", [b"{not json", b"", b"\xff\xfe\x00\x81", b"[1, 2]"])
@pytest.mark.spread(6)
def test_a_config_that_is_no_json(sd_directory, copied, file, content):
    directory = copied(sd_directory)
    (directory / file).write_bytes(content)
    message = refusal(directory)
    assert str(directory) in message


@pytest.mark.parametrize("file", ["unet/config.json", "vae/config.json", "text_encoder/config.json"])
def test_a_missing_config(sd_directory, copied, file):
    directory = copied(sd_directory)
    (directory / file).unlink()
    assert str(directory) in refusal(directory)


@pytest.mark.parametrize("file", [UNET, VAE, TEXT])
@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_a_truncated_weight_file(sd_directory, copied, file, kept):
    directory = copied(sd_directory)
    whole = (directory / file).read_bytes()
    size = int(len(whole) * kept) if isinstance(kept, float) else kept if kept >= 0 else len(whole) + kept
    (directory / file).write_bytes(whole[:size])
    message = refusal(directory)
    assert str(directory / file) in message
    assert f"{size} bytes" in message


def test_a_weight_file_that_is_no_safetensors(sd_directory, copied):
    directory = copied(sd_directory)
    (directory / UNET).write_bytes(b"<!DOCTYPE html>" + bytes(500))
    assert str(directory / UNET) in refusal(directory)


def rewrite_header(file: Path, change) -> None:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize("file", [UNET, VAE, TEXT])
@pytest.mark.parametrize("lie", ["longer", "shape", "dtype", "offsets", "swapped shape", "another name", "left out"])
@pytest.mark.spread(7)
def test_a_header_that_lies(sd_directory, copied, file, lie):
    """Whatever a header says wrongly, nothing is loaded: least of all a model with a few random weights in it."""
    directory = copied(sd_directory)

    def change(header: dict) -> None:
        name = next(k for k, v in sorted(header.items()) if k != "__metadata__" and len(set(v["shape"])) > 1)
        entry = header[name]
        if lie == "longer":
            last = max((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"][1])
            header[last]["data_offsets"][1] += 4096
            header[last]["shape"] = [*header[last]["shape"][:-1], header[last]["shape"][-1] + 1024]
        elif lie == "shape":
            entry["shape"] = [entry["shape"][0] + 1, *entry["shape"][1:]]
        elif lie == "dtype":
            entry["dtype"] = "F99"
        elif lie == "offsets":
            entry["data_offsets"] = entry["data_offsets"][::-1]
        elif lie == "swapped shape":
            entry["shape"] = entry["shape"][::-1]
        elif lie == "another name":
            header[f"nobody.{name}"] = header.pop(name)

    if lie == "left out":
        tensors = load_file(directory / file)
        del tensors[sorted(tensors)[0]]
        save_file(tensors, directory / file, metadata={"format": "pt"})
    else:
        rewrite_header(directory / file, change)
    assert str(directory) in refusal(directory)


def test_a_file_of_no_tensors(sd_directory, copied):
    directory = copied(sd_directory)
    save_file({}, directory / UNET)
    assert str(directory / UNET) in refusal(directory)


def test_a_missing_shard(sd_directory, copied):
    directory = copied(sd_directory)
    (directory / UNET).unlink()
    UNet2DConditionModel.from_pretrained(sd_directory, subfolder="unet").save_pretrained(
        directory / "unet", max_shard_size="40KB"
    )
    shards = sorted((directory / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    assert shards[1].name in refusal(directory)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_an_index_of_shards_that_is_no_good(sd_directory, copied, content):
    directory = copied(sd_directory)
    (directory / UNET).unlink()
    index = directory / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(content)
    assert str(index) in refusal(directory)


def test_a_unet_that_does_not_fit_its_vae(sd_directory, sd_odd_directory, copied):
    directory = copied(sd_directory)
    for file in (sd_odd_directory / "vae").iterdir():
        (directory / "vae" / file.name).write_bytes(file.read_bytes())
    message = refusal(directory)
    assert str(directory) in message
    assert "input channels" in message


def test_a_vae_of_another_class(sd_directory, copied):
    directory = copied(sd_directory)
    for file in (directory / "vae").iterdir():
        file.unlink()
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(directory / "vae")
    assert str(directory) in refusal(directory)


# --- pickles


@pytest.mark.parametrize("parts", [("unet",), ("text_encoder",), ("unet", "vae", "text_encoder")])
def test_pickles_are_read_only_if_allowed(sd, sd_directory, copied, parts, no_network):
    directory = copied(sd_directory)
    for part in parts:
        to_pickle(directory / part)
    message = refusal(directory)
    assert str(directory / parts[0]) in message
    assert "allow_pickle" in message
    assert "pytorch_model.bin" in message
    model = load_model(directory, device="cpu", allow_pickle=True)
    for ours, given in zip(model.modules(), sd.modules(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), given.parameters(), strict=True))
    assert model.weights_sha256 != sd.weights_sha256
    assert no_network == []


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("size", [0, 50, 0.5])
def test_a_broken_pickle(sd_directory, copied, part, size):
    directory = copied(sd_directory)
    to_pickle(directory / part)
    (file,) = (directory / part).glob("*.bin")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * size) if isinstance(size, float) else size])
    assert str(directory) in refusal(directory, allow_pickle=True)


def test_a_pickle_that_would_run_code_does_not(sd_directory, copied, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was-run"),)

    directory = copied(sd_directory)
    (directory / UNET).unlink()
    torch.save({"conv_in.weight": Evil()}, directory / "unet" / "diffusion_pytorch_model.bin")
    refusal(directory)
    refusal(directory, allow_pickle=True)  # diffusers reads tensors alone
    assert not (tmp_path / "was-run").exists()


# --- settings


@pytest.mark.parametrize("dtype", ["float", "fp61", "int8", "", None, 16, ["fp16"], torch.int64, torch.complex64])
def test_a_dtype_that_is_none(sd_directory, dtype):
    message = refusal(sd_directory, ConfigError, dtype=dtype)
    assert repr(dtype) in message
    assert "float32" in message


def test_a_dtype_close_to_one(sd_directory):
    assert "Did you mean 'bfloat16'" in refusal(sd_directory, ConfigError, dtype="bfloat61")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", None, "meta", "cpu:x", ["cpu"], "cuda:99", "xla"])
def test_a_device_that_is_none(sd_directory, device):
    assert repr(device) in refusal(sd_directory, ConfigError, device=device)


@pytest.mark.parametrize("size", ["big", 0, -1, 2.5, True, [1], 1000])
@pytest.mark.spread(3)
def test_an_attention_slice_that_is_none(sd_directory, size):
    message = refusal(sd_directory, ConfigError, attention_slicing=size)
    assert repr(size) in message


def test_settings_are_checked_before_the_weights_are_read(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.dtype"):
        load_model(tmp_path / "nowhere", dtype="fp61")


def test_parameter_count(sd, sd_directory):
    counted = sum(
        int(np.prod(tensor.shape)) for file in (UNET, VAE, TEXT) for tensor in load_file(sd_directory / file).values()
    )
    assert sd.parameter_count() == counted


def test_two_models_of_one_session_are_two(tmp_path, sd):
    other = load_model(save_tiny_sd(tmp_path / "other", seed=9), device="cpu")
    first, second = (
        LoopSampler(m, scheduler="ddim").sample(TextToImage("a"), seeds=[0], steps=2).latents for m in (sd, other)
    )
    assert not torch.allclose(first, second)

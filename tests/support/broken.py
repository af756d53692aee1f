# ruff: noqa: E501
"""Broken models: each a way to spoil a whole Stable Diffusion directory, and a word that has to stand in what is said of it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from safetensors.torch import save_file as save

from support.tiny_models import edit_json

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
CANARY = "RESEARCH_TEST_CANARY"  # a variable with a path: whoever runs the code makes that folder


class Evil:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ[CANARY],)


def write_header(file: Path, header: object, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def change_header(file: Path, change: Callable[[dict], None]) -> None:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    write_header(file, header, data[8 + length :])


def shard(directory: Path, change: Callable[[dict], None] = lambda index: None) -> None:
    """Split the UNet's weights in two, with an index that ``change`` may spoil."""
    file = directory / UNET
    tensors = load_file(file)
    file.unlink()
    names = sorted(tensors)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    where = {}
    for number, half in enumerate(halves, 1):
        name = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({key: tensors[key] for key in half}, file.with_name(name), {"format": "pt"})
        where |= dict.fromkeys(half, name)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    change(index)
    file.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def to_variant(directory: Path, files: tuple[str, ...] = (UNET, VAE, TEXT), variant: str = "fp16") -> None:
    for file in files:
        old = directory / file
        save_file(
            {key: value.half() for key, value in load_file(old).items()},
            old.with_name(f"{old.stem}.{variant}.safetensors"),
            {"format": "pt"},
        )
        old.unlink()


def to_pickle(directory: Path, part: str, content: object = None) -> None:
    (old,) = (directory / part).glob("*.safetensors")
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save(load_file(old) if content is None else content, directory / part / name)
    old.unlink()


def spoil_first(name: str, value: object) -> Callable[[dict], None]:
    def change(header: dict) -> None:
        key = next(k for k in sorted(header) if k != "__metadata__" and len(header[k]["shape"]) > 1)
        header[key][name] = value

    return change


def overlap(header: dict) -> None:
    keys = sorted((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"])
    first, second = header[keys[0]], header[keys[1]]
    start = first["data_offsets"][0]
    second["data_offsets"] = [start, start + second["data_offsets"][1] - second["data_offsets"][0]]


def poison(file: Path, value: float) -> None:
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] = value
    save_file(tensors, file, {"format": "pt"})


def swap(directory: Path, file: str, content: bytes) -> None:
    (directory / file).write_bytes(content)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    make(path)


def zip_of(file: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)


# name -> (how to spoil a copy of a whole directory, what has to be said)
DIRECTORIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda d: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in d.iterdir()], "empty directory"),
    "no index": (lambda d: (d / "model_index.json").unlink(), "model_index.json"),
    "index is a folder": (lambda d: replace(d / "model_index.json", Path.mkdir), "folder"),
    "index is a pipe": (lambda d: replace(d / "model_index.json", os.mkfifo), "pipe"),
    "index is a device": (lambda d: replace(d / "model_index.json", lambda p: p.symlink_to("/dev/zero")), "device"),
    "index links to nothing": (lambda d: replace(d / "model_index.json", lambda p: p.symlink_to("gone")), "link"),
    "index links to itself": (lambda d: replace(d / "model_index.json", lambda p: p.symlink_to(p.name)), "links"),
    "index is binary": (lambda d: swap(d, "model_index.json", os.urandom(500)), "JSON"),
    "index is a list": (lambda d: swap(d, "model_index.json", b"[1]"), "JSON object"),
    "index is nested": (lambda d: swap(d, "model_index.json", b'{"a":' * 100000 + b"1" + b"}" * 100000), "nested"),
    "index is nested a little": (lambda d: swap(d, "model_index.json", b'{"a":' * 300 + b"1" + b"}" * 300), "nested"),
    "index is huge": (lambda d: os.truncate(d / "model_index.json", 10**10), "bytes"),
    "index is utf-16": (lambda d: swap(d, "model_index.json", '{"_class_name": "x"}'.encode("utf-16")), "JSON"),
    "index with a number of 5000 digits": (lambda d: swap(d, "model_index.json", b'{"a": ' + b"9" * 5000 + b"}"), "JSON"),
    "index is an LFS pointer": (lambda d: swap(d, "model_index.json", b"version https://git-lfs.github.com/spec/v1\n"), "git-lfs"),
    "class is none": (lambda d: edit_json(d / "model_index.json", _class_name=None), "_class_name"),
    "class is a list of one": (lambda d: edit_json(d / "model_index.json", _class_name=["Pipe"]), "_class_name"),
    "class is of another kind": (lambda d: edit_json(d / "model_index.json", _class_name="ConsistencyModelPipeline"), "scaled noise levels"),
    "class is unsupported": (lambda d: edit_json(d / "model_index.json", _class_name="FluxPipeline"), "FluxPipeline"),
    "class cannot be printed": (lambda d: edit_json(d / "model_index.json", _class_name="\ud800\x1b[31m\n"), "_class_name"),
    "part is of own code": (lambda d: edit_json(d / "model_index.json", unet=["evil", "UNet2DConditionModel"]), "evil"),
    "part is of another class": (lambda d: edit_json(d / "model_index.json", vae=["diffusers", "AutoencoderTiny"]), "AutoencoderTiny"),
    "part is not named": (lambda d: edit_json(d / "model_index.json", vae=None), "names no vae"),
    "part is null": (lambda d: edit_json(d / "model_index.json", unet=[None, None]), "names no unet"),
    "part in another folder": (lambda d: edit_json(d / "model_index.json", **{"../../x": ["a", "b"]}), "names a part"),
    "part with a strange name": (lambda d: edit_json(d / "model_index.json", **{"a\0\ud800": ["a", "b"]}), "names a part"),
    "part with a long name": (lambda d: edit_json(d / "model_index.json", **{"a" * 3000: ["a", "b"]}), "names a part"),
    "unet is missing": (lambda d: shutil.rmtree(d / "unet"), "unet"),
    "vae is a file": (lambda d: replace(d / "vae", Path.touch), "vae"),
    "tokenizer is missing": (lambda d: shutil.rmtree(d / "tokenizer"), "tokenizer"),
    "tokenizer is empty": (lambda d: replace(d / "tokenizer", Path.mkdir), "no tokenizer"),
    "tokenizer is no JSON": (lambda d: swap(d, "tokenizer/tokenizer.json", b"{"), "JSON"),
    "tokenizer is a strange JSON": (lambda d: swap(d, "tokenizer/tokenizer.json", b"{}"), "tokenizer"),
    "scheduler is missing": (lambda d: shutil.rmtree(d / "scheduler"), "scheduler"),
    "scheduler has no config": (lambda d: (d / "scheduler/scheduler_config.json").unlink(), "scheduler_config.json"),
    "scheduler is unknown to both": (
        lambda d: (edit_json(d / "scheduler/scheduler_config.json", _class_name="DIMMScheduler"), edit_json(d / "model_index.json", scheduler=["diffusers", "DIMMScheduler"])),
        "DDIMScheduler",
    ),
    "scheduler's steps are words": (lambda d: edit_json(d / "scheduler/scheduler_config.json", num_train_timesteps="many"), "many"),
    "scheduler's steps are too many": (lambda d: edit_json(d / "scheduler/scheduler_config.json", num_train_timesteps=10**12), "timesteps"),
    "scheduler's betas are of no kind": (lambda d: edit_json(d / "scheduler/scheduler_config.json", beta_schedule="curved"), "curved"),
    "scheduler predicts nothing known": (lambda d: edit_json(d / "scheduler/scheduler_config.json", prediction_type="noise"), "prediction_type"),
    "scheduler's spacing is unknown": (lambda d: edit_json(d / "scheduler/scheduler_config.json", timestep_spacing="even"), "timestep_spacing"),
    "VAE scales by a word": (lambda d: edit_json(d / "vae/config.json", scaling_factor="much"), "scaling_factor"),
    "VAE scales by NaN": (lambda d: edit_json(d / "vae/config.json", scaling_factor=float("nan")), "scaling_factor"),
    "UNet is of no size": (lambda d: edit_json(d / "unet/config.json", sample_size="big"), "sample_size"),
    "text encoder of another kind": (lambda d: edit_json(d / "text_encoder/config.json", model_type="bert"), "bert"),
    "weights are whole numbers": (lambda d: save_file({k: v.to(torch.int8) for k, v in load_file(d / UNET).items()}, d / UNET), "whole numbers"),
    "config is missing": (lambda d: (d / "unet/config.json").unlink(), "config.json"),
    "config is of another class": (lambda d: edit_json(d / "unet/config.json", _class_name="UNet3DConditionModel"), "UNet3D"),
    "config is quantised": (lambda d: edit_json(d / "unet/config.json", quantization_config={"quant_method": "bnb"}), "quantised"),
    "config has other widths": (lambda d: edit_json(d / "unet/config.json", block_out_channels=[8, 24]), "unet"),
    "config has words for widths": (lambda d: edit_json(d / "unet/config.json", block_out_channels="wide"), "unet"),
    "config has too many layers": (lambda d: edit_json(d / "unet/config.json", layers_per_block=10**8), "layers_per_block"),
    "config has more layers": (lambda d: edit_json(d / "text_encoder/config.json", num_hidden_layers=3), "lack"),
    "config has negative layers": (lambda d: edit_json(d / "text_encoder/config.json", num_hidden_layers=-(10**8)), "num_hidden_layers"),
    "text of another width": (lambda d: edit_json(d / "text_encoder/config.json", hidden_size=24), "shape"),
    "adapter beside the text encoder": (lambda d: swap(d, "text_encoder/adapter_config.json", b"{}"), "adapter"),
    "weights are missing": (lambda d: (d / UNET).unlink(), "no weights"),
    "weights are empty": (lambda d: swap(d, UNET, b""), "0 bytes"),
    "weights are cut": (lambda d: os.truncate(d / UNET, 5000), "5000 bytes"),
    "weights are too long": (lambda d: swap(d, VAE, (d / VAE).read_bytes() + b"\0"), "end"),
    "weights are a pipe": (lambda d: replace(d / UNET, os.mkfifo), "pipe"),
    "weights are a folder": (lambda d: replace(d / UNET, Path.mkdir), "folder"),
    "weights link to nothing": (lambda d: replace(d / UNET, lambda p: p.symlink_to("gone")), "link"),
    "weights link in a circle": (lambda d: replace(d / UNET, lambda p: p.symlink_to(p.name)), "links"),
    "unet links in a circle": (lambda d: replace(d / "unet", lambda p: p.symlink_to("unet")), "unet"),
    "unet links to the whole": (lambda d: replace(d / "unet", lambda p: p.symlink_to("..", True)), "config.json"),
    "header is longer than the file": (lambda d: write_header(d / UNET, {}, length=10**6), "header"),
    "header is of 2**63": (lambda d: write_header(d / UNET, {}, length=2**63), "header"),
    "header is of 2**64 - 1": (lambda d: write_header(d / UNET, {}, length=2**64 - 1), "header"),
    "header is no JSON": (lambda d: write_header(d / UNET, b"{" + b"x" * 50), "header"),
    "header is a list": (lambda d: write_header(d / UNET, b"[1, 2]"), "list"),
    "header is nested": (lambda d: write_header(d / UNET, b'{"a":' * 50000), "header"),
    "header names no tensors": (lambda d: write_header(d / UNET, {"__metadata__": {}}), "no tensors"),
    "header names a tensor twice": (
        lambda d: write_header(d / UNET, b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"\0"),
        "twice",
    ),
    "tensors overlap": (lambda d: change_header(d / UNET, overlap), "overlaps"),
    "tensor out of range": (lambda d: change_header(d / UNET, spoil_first("data_offsets", [0, 2**60])), "bytes"),
    "tensor of negative shape": (lambda d: change_header(d / UNET, spoil_first("shape", [-1, 2])), "shape"),
    "tensor of a strange dtype": (lambda d: change_header(d / UNET, spoil_first("dtype", "F99")), "F99"),
    "tensor without an entry": (lambda d: change_header(d / UNET, lambda h: h.update(a=None)), "shape"),
    "weights are a pickle": (lambda d: torch.save({"a": Evil()}, d / UNET), "zip archive"),
    "weights are a bare pickle": (lambda d: swap(d, UNET, pickle.dumps({"a": Evil()})), "pickle"),
    "weights are HTML": (lambda d: swap(d, UNET, b"<!DOCTYPE html><html>404</html>"), "HTML"),
    "weights are an LFS pointer": (lambda d: swap(d, UNET, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git-lfs"),
    "weights are GGUF": (lambda d: swap(d, UNET, b"GGUF" + bytes(100)), "GGUF"),
    "weights are of another part": (lambda d: shutil.copy(d / VAE, d / UNET), "unet"),
    "weights are a LoRA": (lambda d: save_file({"a.lora_A.weight": torch.zeros(2, 2)}, d / UNET), "unet"),
    "weights under another name": (lambda d: (d / UNET).rename(d / "unet/model.safetensors"), "no weights"),
    "weights have NaN": (lambda d: poison(d / UNET, float("nan")), "not finite"),
    "weights have infinity": (lambda d: poison(d / TEXT, float("inf")), "not finite"),
    "index of shards is no JSON": (lambda d: (shard(d), swap(d, f"{UNET}.index.json", b"{")), "JSON"),
    "index of shards is empty": (lambda d: (shard(d), swap(d, f"{UNET}.index.json", b"{}")), "index of shards"),
    "a shard is missing": (lambda d: (shard(d), next((d / "unet").glob("*1-of*")).unlink()), "missing"),
    "a shard is elsewhere": (lambda d: shard(d, lambda i: i["weight_map"].update({"conv_in.bias": "../vae/x.safetensors"})), "same folder"),
    "a shard is a pickle": (lambda d: (shard(d, lambda i: i["weight_map"].update({"conv_in.bias": "evil.bin"})), torch.save({"a": Evil()}, d / "unet/evil.bin")), "evil.bin"),
    "index names a tensor that is not there": (lambda d: shard(d, lambda i: i["weight_map"].update({"ghost": i["weight_map"]["conv_in.bias"]})), "ghost"),
    "index leaves a tensor out": (lambda d: shard(d, lambda i: i["weight_map"].pop("conv_in.bias")), "conv_in.bias"),
    "variants are mixed": (lambda d: (to_variant(d, (UNET,)), to_variant(d, (VAE,), "ema")), "mixes variants"),
    "pickle with code": (lambda d: to_pickle(d, "unet", {"a": Evil()}), "mkdir"),
    "pickle that is none": (lambda d: (to_pickle(d, "unet"), swap(d, "unet/diffusion_pytorch_model.bin", b"junk" * 99)), "pickle"),
    "pickle that is empty": (lambda d: (to_pickle(d, "unet"), swap(d, "unet/diffusion_pytorch_model.bin", b"")), "pickle"),
    "pickle in another zip": (lambda d: (to_pickle(d, "unet"), zip_of(d / "unet/diffusion_pytorch_model.bin", "a.txt", b"")), "zip archive"),
    "tokens the encoder does not know": (lambda d: swap(d, "tokenizer/tokenizer.json", (d / "tokenizer/tokenizer.json").read_bytes().replace(b'"a": 0', b'"a": 999')), "tokens"),
}  # fmt: skip


def more_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Things that are no directory of a pipeline, made in a folder: name -> (path, what has to be said)."""
    made: dict[str, tuple[Path, str]] = {}

    def add(name: str, say: str, make: Callable[[Path], object]) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
        made[name] = (path, say)

    tensor = torch.zeros(2, 2)

    def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save({name: value.clone() for name, value in tensors.items()}, path)

    add("lora.safetensors", "LoRA", lambda p: save_file({"unet.to_q.lora_A.weight": tensor}, p))
    add(
        "kohya.safetensors",
        "LoRA",
        lambda p: save_file({"lora_unet_mid.lora_up.weight": tensor, "lora_unet_mid.alpha": tensor}, p),
    )
    add("control.safetensors", "ControlNet", lambda p: save_file({"control_model.input_blocks.0.0.weight": tensor}, p))
    add(
        "xl.safetensors",
        "XL",
        lambda p: save_file({"model.diffusion_model.out.0.weight": tensor, "conditioner.embedders.0.x": tensor}, p),
    )
    add("flux.safetensors", "FLUX", lambda p: save_file({"double_blocks.0.img_attn.qkv.weight": tensor}, p))
    add("word.safetensors", "textual inversion", lambda p: save_file({"emb_params": tensor}, p))
    add("vae.safetensors", "VAE", lambda p: save_file({"encoder.down_blocks.0.resnets.0.conv1.weight": tensor}, p))
    add(
        "unet only.safetensors",
        "a part of a single-file checkpoint",
        lambda p: save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}, p),
    )
    add("strange.safetensors", "no known model", lambda p: save_file({"a": tensor}, p))
    add("empty.safetensors", "0 bytes", Path.touch)
    add("html.safetensors", "HTML", lambda p: p.write_bytes(b"<!doctype html>"))
    add("pointer.safetensors", "git-lfs", lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"))
    add("zip.safetensors", "zip archive", lambda p: torch.save({"a": Evil()}, p))
    add("pickle.safetensors", "pickle", lambda p: p.write_bytes(pickle.dumps(Evil())))
    add("folder.safetensors", "empty directory", Path.mkdir)
    add("evil.ckpt", "mkdir", lambda p: torch.save({"state_dict": Evil()}, p))
    add("old evil.pt", "mkdir", lambda p: torch.save({"a": Evil()}, p, _use_new_zipfile_serialization=False))
    add("bare.pkl", "mkdir", lambda p: p.write_bytes(pickle.dumps(Evil())))
    add("protocol0.ckpt", "pickle", lambda p: p.write_bytes(pickle.dumps(Evil(), protocol=0)))
    add("module.pt", "Linear", lambda p: torch.save(torch.nn.Linear(2, 2), p))
    add("compressed.ckpt", "compressed", _compressed)
    add("lora.pt", "LoRA", lambda p: torch.save({"a.lora_up.weight": tensor}, p))
    add("script.pt", "TorchScript", lambda p: zip_of(p, "x/code/a.py", b"import os"))
    add("model.gguf", "GGUF", lambda p: p.write_bytes(b"GGUF" + bytes(50)))
    add("gguf folder/model.gguf", "GGUF", lambda p: p.write_bytes(b"GGUF" + bytes(50)))
    made["gguf folder"] = (folder / "gguf folder", "GGUF")
    add("notes.txt", "text", lambda p: p.write_text("hello"))
    add("picture.png", "PNG", lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"))
    add("pipe", "pipe", os.mkfifo)
    add("dangling", "link", lambda p: p.symlink_to("gone"))
    add("circle", "links", lambda p: p.symlink_to("circle"))
    add("peft/adapter_config.json", "JSON", lambda p: p.write_text("{}"))
    made["peft"] = (folder / "peft", "LoRA")
    add("clip/config.json", "JSON", lambda p: p.write_text('{"model_type": "clip"}'))
    made["clip"] = (folder / "clip", "transformers")
    add("unet/config.json", "JSON", lambda p: p.write_text('{"_class_name": "UNet2DConditionModel"}'))
    made["unet"] = (folder / "unet", "one component")
    add("cn/config.json", "JSON", lambda p: p.write_text('{"_class_name": "ControlNetModel"}'))
    made["cn"] = (folder / "cn", "ControlNetModel")
    add("ünï cödé 空白/readme.md", "text", lambda p: p.write_text("x"))
    made["ünï cödé 空白"] = (folder / "ünï cödé 空白", "model_index.json")
    made["gone"] = (folder / "gone entirely", "does not exist")
    made["long"] = (folder / ("x" * 5000), "does not exist")
    made["device"] = (Path("/dev/zero"), "device")
    return made


def _compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))

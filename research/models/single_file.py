"""Single-file checkpoints of Stable Diffusion, opened by diffusers' own ``from_single_file`` with configs from this disk."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from research.errors import ModelError
from research.files import write_atomic
from research.models.inspect.find_model import config_directory, read_index
from research.models.inspect.fit import CONFIGURED, check_config, checked_parts, quietly, reason, size_problem
from research.models.inspect.hub import fetch_configs
from research.models.inspect.kinds import UNET, VAE, Kind, kind_of_file, kind_of_tensors
from research.models.inspect.parts import TEXT_PARTS
from research.models.inspect.pickles import check_pickle
from research.models.inspect.safe_files import shown, sniff, unreadable
from research.models.inspect.weights import TensorInfo, check_safetensors, read_header

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

_MODULES = (UNET, *VAE, "cond_stage_model.")
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TEXT, _DEPTH = "StableDiffusionPipeline", "StableDiffusionDepth2ImgPipeline"


@dataclass(frozen=True)
class Opened:
    """The modules of a single-file checkpoint, on the CPU, with what is needed to drive or to save them."""

    unet: UNet2DConditionModel
    vae: Any  # an AutoencoderKL, whose attribute `config` diffusers makes at run time
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: SchedulerMixin
    scheduler_config: dict[str, Any]

    @property
    def parts(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("unet", "vae", "text_encoder", "tokenizer")}


@contextlib.contextmanager
def as_safetensors(file: Path, *, allow_pickle: bool) -> Iterator[tuple[Path, Kind]]:
    """A checkpoint as a file whose name and content are safetensors', and what it is. Pickles are rewritten, tensors alone.

    Raises:
        ModelError: it is no checkpoint that can be opened, it is broken, or it is a pickle and pickles are not allowed.
    """
    with tempfile.TemporaryDirectory(prefix="research-") as scratch:
        link = Path(scratch, "checkpoint.safetensors")
        if sniff(file) == "safetensors" or file.suffix == ".safetensors":
            check_safetensors(file)
            link.symlink_to(file.absolute())
        else:
            kind = kind_of_file(file)
            if kind.name != "pickle":
                raise ModelError(f"model.path: {file} {kind.sentence()}")
            if not allow_pickle:
                raise ModelError(
                    f"model.path: {file} is pickled, which can run code when it is read; accepted are safetensors, or set "
                    "model.allow_pickle=true if you trust where it comes from."
                )
            check_pickle(file)
            _rewrite(file, link)
        kind = kind_of_tensors(read_header(link))
        if not kind.loads:
            raise ModelError(f"model.path: {file} {kind.sentence()}")
        yield link, kind


def open_file(
    file: Path, *, config: Path, dtype: torch.dtype | None = None, allow_pickle: bool = False
) -> tuple[Opened, Kind]:
    """Open a checkpoint with the component configs, tokenizer and scheduler of a diffusers directory. No network is used.

    Args:
        config: the directory; weights in it are not read.
        dtype: of the modules; None keeps the file's own, or takes float32 where it has several.

    Raises:
        ModelError: either is broken, or they do not fit.
    """
    from diffusers import StableDiffusionPipeline

    scheduler_config = check_config(config)
    with as_safetensors(file, allow_pickle=allow_pickle) as (link, kind), _plain_config(config) as configs:
        tensors = read_header(link)
        if problem := size_problem(file, tensors, config):
            raise ModelError(problem)
        try:
            with quietly():
                pipe = StableDiffusionPipeline.from_single_file(
                    str(link),
                    config=str(configs),
                    torch_dtype=dtype or own_dtype(tensors),
                    local_files_only=True,
                    safety_checker=None,
                    feature_extractor=None,
                    image_encoder=None,
                )
        except Exception as error:  # what a file that does not fit makes the library raise is no closed list
            why = reason(error).replace(str(link), str(file)).replace(str(configs), str(config))
            raise ModelError(f"model.path: {file} cannot be opened with the configs of {config}: {why}") from error
    opened = Opened(pipe.unet, pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.scheduler, scheduler_config)
    for name in CONFIGURED:
        _check_all_there(getattr(opened, name).eval(), name, f"{file} and the configs of {config}")
    return opened, kind


@contextlib.contextmanager
def single_file_config(
    file: Path, config: str | os.PathLike[str] | None, *, allow_pickle: bool, offline: bool | None
) -> Iterator[Path]:
    """The directory of configs for a file: the one given (a path or a zoo name), or that of the hub's model of the kind.

    Raises:
        ModelError: there is none, or the file is no checkpoint.
    """
    if config is not None:
        yield config_directory(config)
        return
    with as_safetensors(file, allow_pickle=allow_pickle) as (_, kind):
        yield fetch_configs(file, kind, offline=offline)


def write_file(file: Path, config: Path, folder: Path, *, allow_pickle: bool, needs_depth: bool = True) -> None:
    """Write a single-file checkpoint as a diffusers directory.

    Args:
        needs_depth: refuse a depth checkpoint without an estimator in ``config``, as its pipeline does; else leave it out.
    """
    import diffusers

    opened, kind = open_file(file, config=config, allow_pickle=allow_pickle)
    latent = opened.vae.config.latent_channels
    name = {2 * latent + 1: "StableDiffusionInpaintPipeline", latent + 1: _DEPTH}.get(kind.in_channels or latent, _TEXT)
    more: dict[str, object] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if name == _DEPTH:
        more = _depth_parts(file, config, needed=needs_depth) or more
    cls = getattr(diffusers, _TEXT if name == _DEPTH and "depth_estimator" not in more else name)
    with quietly():
        cls(**opened.parts, scheduler=opened.scheduler, **more).save_pretrained(folder, safe_serialization=True)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    write_atomic(folder / "model_index.json", json.dumps({**index, "_class_name": name}, indent=2) + "\n")
    # the scheduler as its config says it, and not as the library mends it on reading
    write_atomic(folder / "scheduler" / "scheduler_config.json", json.dumps(opened.scheduler_config, indent=2) + "\n")


def _depth_parts(file: Path, config: Path, *, needed: bool) -> dict[str, object]:
    from research.models.depth import DepthEstimator

    if not (config / "depth_estimator").is_dir():
        if not needed:
            return {}
        raise ModelError(
            f"model.path: {file} takes a depth map, and no single file holds a depth estimator; accepted with it is a "
            "--config DIR with the weights of one (depth_estimator)."
        )
    checked_parts(config, allow_pickle=False)
    depth = DepthEstimator.load(config, dtype=torch.float32, safe=True)
    return {"depth_estimator": depth.network, "feature_extractor": depth.processor} if depth else {}


def own_dtype(tensors: Mapping[str, TensorInfo]) -> torch.dtype:
    """The dtype of a checkpoint's modules if they share one, else float32, which holds the others exactly."""
    found = {t.dtype for name, t in tensors.items() if name.startswith(_MODULES) and t.dtype.startswith(("F", "BF"))}
    return _DTYPES.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


@contextlib.contextmanager
def _plain_config(config: Path) -> Iterator[Path]:
    """A copy of a directory's small files, with an index that names nothing but the five classes that are expected.

    diffusers imports what an index names, whoever wrote it.
    """
    index = read_index(config)
    with tempfile.TemporaryDirectory(prefix="research-") as scratch:
        copy = Path(scratch)
        named = {name: index[name] for name in TEXT_PARTS}
        (copy / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **named}))
        for name in named:
            (copy / name).mkdir()
            for file in (config / name).iterdir():
                if file.suffix in (".json", ".txt", ".model") and unreadable(file) is None:
                    (copy / name / file.name).symlink_to(file.absolute())
        yield copy


def _rewrite(file: Path, target: Path) -> None:
    """Write the tensors of a pickled checkpoint as safetensors, less what training left in it."""
    from safetensors.torch import save_file

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(f"model.path: {file} cannot be read as a pickle of tensors: {reason(error)}") from error
    for _ in range(3):
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
    found = {
        name: tensor
        for name, tensor in (state.items() if isinstance(state, dict) else ())
        if isinstance(name, str) and isinstance(tensor, torch.Tensor)
    }
    if not found:
        raise ModelError(f"model.path: {file} is a pickle that holds no tensors by name.")
    wanted = {name: tensor for name, tensor in found.items() if name.startswith(_MODULES)} or found
    try:
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in wanted.items()}, target)
    except Exception as error:
        raise ModelError(f"model.path: {file} holds tensors that safetensors cannot: {reason(error)}") from error


def _check_all_there(module: torch.nn.Module, name: str, which: str) -> None:
    """The library leaves weights that it finds no tensor for without values, and says nothing."""
    if lacking := [key for key, value in module.named_parameters() if value.is_meta]:
        raise ModelError(f"model.path: {which} do not fit: the file lacks {shown(lacking[0])} of the {name}.")

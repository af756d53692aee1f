"""Single files of Stable Diffusion XL, 3, 3.5 and FLUX.1 are their directories bit for bit, whatever else stands in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.original_names import UNET, single_file_of
from torch import Tensor

from research import LoopSampler, load_model
from research.errors import ModelError
from research.guidance import CFG
from research.models.convert import convert_model
from research.models.inspect.checkpoints import read_checkpoint, with_points
from research.models.inspect.fit_file import ZERO_SNR
from research.models.inspect.inspect_model import inspect_model
from research.models.inspect.kinds import kind_of_tensors
from research.models.inspect.weights import read_header
from research.tasks import TextToImage
from research.testing.random_pipelines import BUILDERS, save_flux, save_sd3, save_sdxl

Tensors = dict[str, Tensor]

KINDS: dict[str, Callable[[Path], Path]] = {
    "FLUX.1 dev": save_flux,
    "FLUX.1 schnell": BUILDERS["flux schnell"],
    "Stable Diffusion XL": save_sdxl,
    "the refiner of Stable Diffusion XL": partial(save_sdxl, refiner=True),
    "Stable Diffusion 3 medium": save_sd3,
    "Stable Diffusion 3.5 medium": BUILDERS["sd3.5 without T5"],
    "Stable Diffusion XL (9 channels)": partial(save_sdxl, channels=9),
    "Stable Diffusion XL (distilled)": BUILDERS["sdxl distilled"],
}


def built(folder: Path, build: Callable[[Path], Path]) -> Path:
    """A directory; the first text of Stable Diffusion 3 is pooled without a projection, as the original code has none."""
    build(folder)
    for file in (folder / "text_encoder").glob("*.safetensors"):
        state = load_file(file)
        if (projection := state.get("text_projection.weight")) is not None:
            save_file({**state, "text_projection.weight": torch.eye(*projection.shape)}, file, {"format": "pt"})
    return folder


def configs_of(directory: Path, target: Path) -> Path:
    shutil.copytree(directory, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


def latents(model, **more) -> Tensor:
    guidance = CFG(3.0) if model.family != "flux" else None
    sampler = LoopSampler(model, scheduler="model", **({"guidance": guidance} if guidance else {}))
    return sampler.sample(TextToImage("a cat", height=16, width=16), seeds=[3], steps=2, **more).latents


@pytest.mark.brought(
    "Checkpoint files",
    "a single file of Stable Diffusion 1.x, 2.x, XL, its refiner, 3, 3.5 or FLUX.1, with `model.config=DIR`",
    "accepted",
    "bit for bit as the directory",
)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.spread(1)
def test_a_file_is_its_directory(name, tmp_path, no_network):
    """Told by its header, the same weights, and the same latents as those of the directory; converted too."""
    directory = built(tmp_path / "whole", KINDS[name])
    configs, file = configs_of(directory, tmp_path / "configs"), tmp_path / "model.safetensors"
    save_file(single_file_of(directory), file, {"format": "pt"})
    found = inspect_model(file, config=configs)
    assert (found.verdict, found.warnings) == ("safe", [])
    assert name.partition(" (")[0] in found.what
    ours, theirs = load_model(file, config=configs, device="cpu"), load_model(directory, device="cpu")
    assert (ours.family, ours.pipeline, ours.geometry) == (theirs.family, theirs.pipeline, theirs.geometry)
    for mine, given in zip(ours.modules(), theirs.modules(), strict=True):
        state = given.state_dict()
        assert mine.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in mine.state_dict().items())
    if "9 channels" not in name:
        assert torch.equal(latents(ours), latents(theirs))
    out = convert_model(file, tmp_path / "out", config=configs)
    assert inspect_model(out).verdict == "safe"
    for part in directory.glob("*/*.safetensors"):
        written, given = load_file(out / part.relative_to(directory)), load_file(part)
        assert written.keys() == given.keys()
        assert all(torch.equal(written[key], given[key]) for key in given)
    assert no_network == []


# --- parts that the file lacks


@pytest.fixture(scope="module")
def flux(tmp_path_factory) -> Path:
    """A folder with ``whole`` (a directory), ``configs`` (of it) and ``network.safetensors`` (its transformer alone)."""
    folder = tmp_path_factory.mktemp("flux")
    directory = built(folder / "whole", save_flux)
    configs_of(directory, folder / "configs")
    tensors = single_file_of(directory, without=("vae", "text_encoder", "text_encoder_2"))
    save_file({name.removeprefix(UNET): value for name, value in tensors.items()}, folder / "network.safetensors")
    return folder


@pytest.mark.brought(
    "Checkpoint files",
    "a network alone, without text encoders and VAE (flux1-dev.safetensors)",
    "accepted",
    "their weights are those of `model.config`; without it they are named",
)
@pytest.mark.slow
def test_parts_that_a_file_lacks_are_those_of_the_config(flux, no_network):
    """As of flux1-dev.safetensors, which is the transformer alone, under names without a prefix."""
    found = inspect_model(flux / "network.safetensors", config=flux / "whole")
    assert found.verdict == "safe"
    assert any("text_encoder, text_encoder_2" in note or "vae" in note for note in found.notes)
    model, given = (
        load_model(flux / "network.safetensors", config=flux / "whole", device="cpu"),
        load_model(flux / "whole", device="cpu"),
    )
    assert torch.equal(latents(model), latents(given))
    assert no_network == []


def test_parts_that_neither_has_are_named(flux, no_network):
    for config in (flux / "configs", None):
        found = inspect_model(flux / "network.safetensors", config=config)
        assert found.verdict == "no"
        assert "vae" in found.sentence
        assert "text_encoder_2" in found.sentence
        with pytest.raises(ModelError, match="text_encoder_2"):
            load_model(flux / "network.safetensors", config=config, device="cpu", offline=True)
    assert no_network == []


@pytest.mark.brought(
    "Checkpoint files", "configs of another model", "refused", "what the file lacks, or has no place for"
)
@pytest.mark.parametrize("name", ["the refiner of Stable Diffusion XL", "Stable Diffusion 3 medium", "FLUX.1 schnell"])
@pytest.mark.spread(1)
def test_configs_of_another_model(name, flux, tmp_path):
    configs = configs_of(built(tmp_path / "other", KINDS[name]), tmp_path / "configs")
    tensors = single_file_of(flux / "whole")
    save_file(tensors, tmp_path / "model.safetensors")
    found = inspect_model(tmp_path / "model.safetensors", config=configs)
    assert found.verdict == "no"
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path / "model.safetensors", config=configs, device="cpu")
    assert str(caught.value).removeprefix("model.path: ") == found.reason


# --- what else stands in files


@pytest.fixture(scope="module")
def xl(tmp_path_factory) -> tuple[Tensors, Path, dict[str, Tensors]]:
    """The tensors of a file of Stable Diffusion XL, the configs of its directory, and the weights of its parts there."""
    folder = tmp_path_factory.mktemp("xl")
    directory = built(folder / "whole", save_sdxl)
    parts = {file.parent.name: load_file(file) for file in directory.glob("*/*.safetensors")}
    return single_file_of(directory), configs_of(directory, folder / "configs"), parts


def flat(tensors: Tensors) -> Tensors:
    """The network as its moving average alone, under the names that the original code gave that."""
    return {
        "model_ema." + name.removeprefix("model.").replace(".", "") if name.startswith(UNET) else name: value
        for name, value in tensors.items()
    }


def fp8(tensors: Tensors) -> Tensors:
    return {name: value.to(torch.float8_e4m3fn) for name, value in tensors.items()}


def scaled(tensors: Tensors) -> Tensors:
    """The network's matrices as fp8 times a scale."""
    found = dict(tensors)
    for name, value in tensors.items():
        if name.startswith(UNET) and name.endswith("to_q.weight"):
            found[name] = value.to(torch.float8_e4m3fn)
            found[name.replace(".weight", ".scale_weight")] = torch.tensor(1.0)
    return {**found, "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}


BESIDE = {
    "a LoRA's leftover": {"lora_te_text_model_x.lora_up.weight": torch.zeros(2, 2)},
    "a ControlNet": {f"control_model.input_blocks.{k}.0.weight": torch.zeros(2) for k in range(90)},
    "counters and losses": {
        "first_stage_model.model_ema.decay": torch.tensor(0.9),
        "first_stage_model.encoder.mid.block_1.norm1.num_batches_tracked": torch.tensor(3),
        "first_stage_model.loss.discriminator.main.0.weight": torch.zeros(3),
        "model_ema.num_updates": torch.tensor(1),
        "alphas_cumprod": torch.zeros(10),
    },
    "what a text encoder has not": {
        "conditioner.embedders.0.transformer.text_model.embeddings.extra": torch.zeros(2),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(24)[None],
        "conditioner.embedders.1.model.logit_scale": torch.tensor(1.0),
        "conditioner.embedders.1.model.attn_mask": torch.zeros(24, 24),
    },
}
CHANGED: dict[str, Callable[[Tensors], Tensors]] = {
    **{what: partial(lambda more, tensors: {**tensors, **more}, more) for what, more in BESIDE.items()},
    "a moving average beside it": lambda tensors: {**tensors, **{k: v + 1 for k, v in flat(tensors).items() if k not in tensors}},
    "a moving average alone": flat,
    "names without text_model.": lambda tensors: {k.replace(".text_model.", "."): v for k, v in tensors.items()},
    "names of torch.compile": lambda tensors: {
        k.replace("diffusion_model.", "diffusion_model._orig_mod."): v for k, v in tensors.items()
    },
    "names of DataParallel": lambda tensors: {f"module.{k}": v for k, v in tensors.items()},
    "the other name of a VAE": lambda tensors: {k.replace("first_stage_model.", "vae."): v for k, v in tensors.items()},
    "an encoder in transformers' names": lambda tensors: tensors,
}  # fmt: skip


@pytest.mark.brought(
    "Checkpoint files",
    "a leftover of a LoRA, a ControlNet or an average (EMA) beside the model; counters and losses",
    "repaired",
    "what is of no part of the model is left out, and named",
)
@pytest.mark.brought(
    "Checkpoint files",
    "EMA weights alone; text encoders without `text_model.`; `_orig_mod.` and `module.` before names; `vae.` for the VAE",
    "repaired",
    "read under the names that they stand for",
)
@pytest.mark.parametrize("what", CHANGED)
@pytest.mark.spread(1)
def test_what_else_stands_in_a_file(what, xl, tmp_path):
    """Whatever it is, the same weights come of it, and what is left out or chosen is said."""
    tensors, configs, parts = xl
    if what == "an encoder in transformers' names":
        tensors = {k: v for k, v in tensors.items() if not k.startswith("conditioner.embedders.1.")}
        tensors |= {f"conditioner.embedders.1.transformer.{k}": v for k, v in parts["text_encoder_2"].items()}
    file = tmp_path / "model.safetensors"
    save_file({k: v.clone() for k, v in CHANGED[what](tensors).items()}, file)
    found = inspect_model(file, config=configs)
    assert (found.verdict, found.reason) == ("safe", None)
    if what in ("a LoRA's leftover", "a ControlNet"):
        assert any("left out" in note for note in found.notes)
    if what == "a moving average alone":
        assert any("EMA" in note for note in found.notes)
    assert same(file, configs, parts, tmp_path)


def same(file: Path, configs: Path, parts: dict[str, Tensors], folder: Path, **more) -> bool:
    out = convert_model(file, folder / "out", config=configs, **more)
    return all(
        torch.equal(value, state[key])
        for name, given in parts.items()
        for state in [{k: v for f in (out / name).glob("*.safetensors") for k, v in load_file(f).items()}]
        for key, value in given.items()
    )


WRAPPED: dict[str, Callable[[Tensors], object]] = {
    "state_dict": lambda tensors: {"state_dict": tensors, "global_step": 3, "epoch": 1},
    "model": lambda tensors: {"model": tensors},
    "state_dict in model": lambda tensors: {"model": {"state_dict": tensors}},
    "module.": lambda tensors: {"state_dict": {f"module.{k}": v for k, v in tensors.items()}},
    "the average beside": lambda tensors: {"model": tensors, "ema": {k: v + 1 for k, v in tensors.items()}},
    "nothing": lambda tensors: tensors,
}


@pytest.mark.brought(
    "Checkpoint files",
    "a pickle, wrapped in `state_dict`, `model` or both",
    "accepted",
    "with `model.allow_pickle=true`, tensors alone",
)
@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.slow
def test_pickles_in_wrappers(how, xl, tmp_path):
    tensors, configs, parts = xl
    torch.save(WRAPPED[how](tensors), tmp_path / "model.ckpt")
    found = inspect_model(tmp_path / "model.ckpt", config=configs)
    assert found.verdict == "pickle"
    assert "Stable Diffusion XL" in found.what
    with pytest.raises(ModelError, match="allow_pickle"):
        load_model(tmp_path / "model.ckpt", config=configs, device="cpu")
    assert same(tmp_path / "model.ckpt", configs, parts, tmp_path, allow_pickle=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.slow
def test_weights_of_fewer_bits_keep_their_values(dtype, xl, tmp_path):
    tensors, configs, parts = xl
    save_file({name: value.to(dtype) for name, value in tensors.items()}, tmp_path / "model.safetensors")
    assert inspect_model(tmp_path / "model.safetensors", config=configs).verdict == "safe"
    out = convert_model(tmp_path / "model.safetensors", tmp_path / "out", config=configs)
    for name, given in parts.items():
        written = load_file(next((out / name).glob("*.safetensors")))
        assert {value.dtype for value in written.values()} == {dtype if dtype.itemsize > 1 else torch.float16}
        assert all(torch.equal(written[key].float(), value.to(dtype).float()) for key, value in given.items())


@pytest.mark.slow
@pytest.mark.brought(
    "Checkpoint files", "weights in fp8, scaled or not", "repaired", "in 16 bits, with the same values"
)
def test_scaled_fp8(xl, tmp_path):
    """As of ComfyUI: a weight is the number in fp8 times a scale that stands beside it."""
    tensors, configs, parts = xl
    save_file(scaled(tensors), tmp_path / "model.safetensors")
    out = convert_model(tmp_path / "model.safetensors", tmp_path / "out", config=configs)
    written = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    for key, value in parts["unet"].items():
        assert torch.equal(
            written[key].float(), value.to(torch.float8_e4m3fn).float() if key.endswith("to_q.weight") else value
        )


# --- how the network was trained


def metadata(**said: str) -> dict[str, str]:
    return {"format": "pt", **{key.replace("__", "."): value for key, value in said.items()}}


MARKS: dict[str, tuple[Tensors, dict[str, str], str, bool]] = {
    "nothing": ({}, metadata(), "epsilon", False),
    "v_pred": ({"v_pred": torch.tensor([])}, metadata(), "v_prediction", False),
    "both keys": ({"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}, metadata(), "v_prediction", True),
    "modelspec": ({}, metadata(modelspec__prediction_type="v"), "v_prediction", False),
    "modelspec, in words": ({}, metadata(modelspec__prediction_type="v-prediction"), "v_prediction", False),
    "modelspec of epsilon": ({}, metadata(modelspec__prediction_type="epsilon"), "epsilon", False),
    "architecture": ({}, metadata(modelspec__architecture="stable-diffusion-v2-768-v"), "v_prediction", False),
    "kohya": ({}, metadata(ss_v_parameterization="True", ss_zero_terminal_snr="True"), "v_prediction", True),
    "kohya, not": ({}, metadata(ss_v_parameterization="False"), "epsilon", False),
}


@pytest.mark.slow
@pytest.mark.brought(
    "Checkpoint files",
    "v-prediction and zero terminal SNR marked by `v_pred`, `ztsnr` or metadata (modelspec, kohya)",
    "repaired",
    "the mark is heeded against the configs, and said",
)
@pytest.mark.parametrize("what", MARKS)
@pytest.mark.spread(2)
def test_marks_are_heeded_and_said(what, xl, tmp_path):
    """v-prediction and a terminal signal-to-noise ratio of zero, by keys or metadata; the sampler starts from noise then."""
    tensors, configs, _ = xl
    more, said, prediction, zero = MARKS[what]
    save_file({**tensors, **more}, tmp_path / "model.safetensors", said)
    found = inspect_model(tmp_path / "model.safetensors", config=configs)
    assert found.scheduler["prediction_type"] == prediction
    assert found.scheduler["zero_terminal_snr"] == zero
    assert any("v_prediction" in note for note in found.notes) == (prediction != "epsilon")
    if what in ("nothing", "both keys"):
        model = load_model(tmp_path / "model.safetensors", config=configs, device="cpu")
        assert model.scheduler_config.get("prediction_type", "epsilon") == prediction
        assert bool(model.scheduler_config.get("rescale_betas_zero_snr")) == zero
        assert set(model.notes) == set(found.notes)


def test_zero_snr_takes_a_scheduler_that_can():
    """Diffusers' classes that can rescale their betas, as it has them now."""
    import inspect

    import diffusers

    with_key = {
        name
        for name in dir(diffusers)
        if name.endswith("Scheduler")
        and "rescale_betas_zero_snr" in inspect.signature(getattr(diffusers, name).__init__).parameters
    }
    assert set(ZERO_SNR) <= with_key


@pytest.mark.brought(
    "Checkpoint files",
    "a network preconditioned as EDM (`edm_vpred.sigma_max`, `edm_mean`) with another scheduler",
    "refused",
    "accepted is a directory with an EDM scheduler",
)
def test_edm_is_not_taken_for_something_else(xl, tmp_path):
    tensors, configs, _ = xl
    save_file({**tensors, "edm_vpred.sigma_max": torch.tensor(120.0)}, tmp_path / "model.safetensors")
    assert "EDM scheduler" in inspect_model(tmp_path / "model.safetensors", config=configs).sentence


# --- told by names


def test_names_get_their_points_back(xl):
    """For every name of a UNet, which for two numbers side by side takes knowing how many digits the second has."""
    names = [name.removeprefix(UNET) for name in xl[0] if name.startswith(UNET)]
    names += ["input_blocks.10.0.in_layers.2.weight", "output_blocks.11.1.transformer_blocks.9.attn2.to_out.0.bias"]
    assert [with_points(name.replace(".", "")) for name in names] == names
    assert with_points("whatever") is None


@pytest.mark.parametrize(
    ("names", "name"),
    [
        ([f"{UNET}a.{k}.absmax" for k in range(9)], "quantised"),
        ([f"double_blocks.{k}.img_attn.x" for k in range(9)], "flux-checkpoint"),
        ([f"distilled_guidance_layer.{k}" for k in range(9)], "chroma-checkpoint"),
        ([f"single_stream_modulation.{k}" for k in range(9)], "flux2-checkpoint"),
        ([f"encoder.block.{k}.layer.0.x" for k in range(9)], "t5"),
        ([f"down_blocks.0.resnets.{k}.x" for k in range(99)] + ["a.lora_up.weight"], "unet"),
        ([f"down_blocks.0.resnets.{k}.x" for k in range(99)] + [f"controlnet_down_blocks.{k}.x" for k in range(9)], "controlnet"),
        (["vae.decoder.x"] + [f"lora_unet_x_{k}.alpha" for k in range(99)], "lora"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint(names, name, xl):
    header = dict.fromkeys(names) | (dict.fromkeys(xl[0]) if name == "quantised" else {})
    found = kind_of_tensors(header)
    assert (found.name, found.loads) == (name, False)


def test_a_file_says_which_parts_it_holds(xl, tmp_path):
    tensors = {k: v for k, v in xl[0].items() if not k.startswith("conditioner.")}
    save_file(tensors, tmp_path / "model.safetensors")
    found = read_checkpoint(read_header(tmp_path / "model.safetensors"))
    assert found is not None
    assert (found.original.name, found.missing) == ("sdxl", ("text_encoder", "text_encoder_2"))

"""`model.loras`: weights bit for bit those of the pipeline with the same LoRAs, and what stands in their way."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from research import LoopSampler, load_model
from research.errors import ConfigError
from research.guidance import CFG
from research.models import BaseModel
from research.models.inspect.families import FAMILIES
from research.models.lora_files import read_loras
from research.tasks import TextToImage
from research.testing import random_pipelines

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_pipelines.save_flux(tmp_path_factory.mktemp("lora") / "flux")


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_pipelines.save_sd3(tmp_path_factory.mktemp("lora") / "sd3")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_pipelines.save_sdxl(tmp_path_factory.mktemp("lora") / "sdxl")


def opened(directory: Path) -> Any:
    pipe = diffusers.DiffusionPipeline.from_pretrained(directory)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def saved_lora(directory: Path, folder: Path, seed: int, rank: int = 2) -> Path:
    """A LoRA of a directory's network and first text encoder, made by peft and written by the pipeline."""
    pipe = opened(directory)
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    found = {}
    for name, targets in ((part, ["to_q", "to_v"]), ("text_encoder", ["q_proj"])):
        module = getattr(pipe, name)
        torch.manual_seed(seed)
        module.add_adapter(peft.LoraConfig(r=rank, lora_alpha=4, target_modules=targets, init_lora_weights=False))
        found[f"{name}_lora_layers"] = peft.get_peft_model_state_dict(module)
    type(pipe).save_lora_weights(folder, **found)
    return folder


def of_pipeline(directory: Path, loras: list[tuple[Path, float]]) -> Any:
    pipe = opened(directory)
    names = [f"lora{place}" for place in range(len(loras))]
    for name, (path, _) in zip(names, loras, strict=True):
        pipe.load_lora_weights(path, adapter_name=name)
    pipe.set_adapters(names, [weight for _, weight in loras])
    return pipe


@pytest.mark.parametrize("name", ["sd_directory", "sdxl", "sd3", "flux"])
@pytest.mark.spread(1)
def test_equal_to_the_pipeline(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    directory = request.getfixturevalue(name)
    loras = [(saved_lora(directory, tmp_path / str(seed), seed), weight) for seed, weight in ((1, 0.7), (2, -0.3))]
    model = load_model(directory, dtype="float32", device="cpu", loras=loras)
    plain = load_model(directory, dtype="float32", device="cpu")
    assert model.weights_sha256 != plain.weights_sha256
    assert model.layers("block") == plain.layers("block")
    pipe = of_pipeline(directory, loras)
    flux = name == "flux"
    sampler = LoopSampler(model, guidance=None if flux else CFG(3.0), parity=True)
    mine = sampler.sample(TextToImage("a fox"), seeds=[0], steps=2).latents
    told = {"prompt": "a fox", "num_inference_steps": 2, "output_type": "latent"}
    told |= {"height": sampler_size(model)[0], "width": sampler_size(model)[1]}
    told |= {} if flux else {"guidance_scale": 3.0}

    def run() -> torch.Tensor:
        pipe.scheduler = LoopSampler(plain, "model", parity=True)._new_solver().scheduler
        found = pipe(generator=[torch.Generator().manual_seed(0)], **told).images
        return found.reshape(-1)

    unfused = run()
    pipe.fuse_lora(components=list(pipe.get_list_adapters()))
    fused = run()
    flat = mine.reshape(-1)
    if flux:  # as tokens
        from research.sampling.packing import unpack

        tokens = fused.reshape(1, -1, mine.shape[1] * 4)
        flat, fused = mine, unpack(tokens, *mine.shape[2:])
        unfused = unpack(unfused.reshape(tokens.shape), *mine.shape[2:])
    assert torch.equal(flat, fused)
    torch.testing.assert_close(flat, unfused, atol=1e-4 * float(flat.abs().max()), rtol=0)
    other = LoopSampler(plain, guidance=None if flux else CFG(3.0), parity=True)
    assert not torch.allclose(other.sample(TextToImage("a fox"), seeds=[0], steps=2).latents, mine, atol=1e-3)


def sampler_size(model: Any) -> tuple[int, int]:
    _, height, width = model.latent_shape(None, None)
    return height * model.vae_factor, width * model.vae_factor


def test_refused_before_weights_load(sdxl: Path, sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = saved_lora(sdxl, tmp_path / "sdxl-lora", 1)

    def refused(match: str, loras: Any, directory: Path = sdxl) -> None:
        with pytest.raises(ConfigError, match=match) as caught:
            load_model(directory, device="cpu", loras=loras)
        assert "\n" not in str(caught.value)

    monkeypatch.setattr(BaseModel, "from_directory", None)
    refused(r"^model.loras\[0\].path: .*is of another model: .*sd3 has no unet\.", [(lora, 1.0)], sd3)
    refused(r"^model.loras\[0\].path: .*nothing is not there", [(tmp_path / "nothing", 1.0)])
    refused(r"^model.loras\[1\].weight: found 'much'", [(lora, 1.0), (lora, "much")])
    refused(r"^model.loras\[0\].weight: found nan", [(lora, float("nan"))])
    refused(r"^model.loras\[0\]: found \{'file'", [{"file": "x"}])
    refused(r"^model.loras: found 'x'; accepted is a list", "x")
    weights = sdxl / "unet" / "diffusion_pytorch_model.safetensors"
    refused(r"^model.loras\[0\].path: .* is no LoRA: none of its", [(weights, 1.0)])
    wide = {
        "unet.conv_in.lora_A.weight": torch.zeros(2, 9, 3, 3),
        "unet.conv_in.lora_B.weight": torch.zeros(8, 2, 1, 1),
    }
    save_file(wide, tmp_path / "wide.safetensors")
    refused(r"it has 9 inputs for unet.conv_in, and .* has 4", [(tmp_path / "wide.safetensors", 1.0)])
    (tmp_path / "pickle.bin").write_bytes(b"x")
    refused(r"may run code", [(tmp_path / "pickle.bin", 1.0)])
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 30)
    refused(r"^model.loras\[0\].path: ", [(tmp_path / "cut.safetensors", 1.0)])
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "peft" else real(name, *a))
    refused(r"^model.loras: peft is not installed; pip install", [(lora, 1.0)])


def test_names_that_fit_nothing(sdxl: Path, tmp_path: Path) -> None:
    file = tmp_path / "odd.safetensors"
    save_file({"something.lora_A.weight": torch.zeros(2, 4), "something.lora_B.weight": torch.zeros(4, 2)}, file)
    with pytest.raises(ConfigError, match=r"^model.loras\[0\].path: .*odd.safetensors"):
        load_model(sdxl, device="cpu", loras=[(file, 1.0)])


def lora_of_any(directory: Path, folder: Path) -> Path:
    """A LoRA of the network's attention, and of the first text encoder where the pipeline's loader takes it."""
    index = json.loads((directory / "model_index.json").read_text())
    absent = {name: None for name, entry in index.items() if isinstance(entry, list) and entry[0] is None}
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(directory, **absent)
    found = {}
    for name in type(pipe)._lora_loadable_modules[:2]:
        module = getattr(pipe, name, None)
        layers = [] if module is None else module.named_modules()
        targets = [key for key, _ in layers if key.rpartition(".")[2] in ("to_q", "add_q_proj", "q_proj")]
        if not targets:
            continue
        torch.manual_seed(5)
        module.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False))
        found[f"{name}_lora_layers"] = peft.get_peft_model_state_dict(module)
    type(pipe).save_lora_weights(folder, **found)
    return folder


TAKES = [name for name in random_pipelines.BUILDERS if not name.startswith(("dit", "pixart"))]


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", ["chroma", "qwen-image", *(n for n in TAKES if n not in ("chroma", "qwen-image"))])
def test_weights_of_every_family(name: str, tmp_path: Path) -> None:
    directory = random_pipelines.BUILDERS[name](tmp_path / "model")
    lora = lora_of_any(directory, tmp_path / "lora")
    model = load_model(directory, dtype="float32", device="cpu", loras=[(lora, 0.7)])
    index = json.loads((directory / "model_index.json").read_text())
    absent = {name: None for name, entry in index.items() if isinstance(entry, list) and entry[0] is None}
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(directory, **absent)
    before = {key: value.clone() for key, value in getattr(pipe, model.network_part).state_dict().items()}
    pipe.load_lora_weights(lora, adapter_name="one")
    pipe.set_adapters(["one"], [0.7])
    pipe.fuse_lora(components=list(pipe.get_list_adapters()))
    pipe.unload_lora_weights()
    for part, module in model.named_parts().items():
        if isinstance(module, torch.nn.Module):
            want = getattr(pipe, part).state_dict()
            assert all(torch.equal(value, want[key]) for key, value in module.state_dict().items()), part
    assert any(not torch.equal(value, before[key]) for key, value in model.network.state_dict().items())


@pytest.mark.slow
def test_families_that_take_none_are_those_whose_pipelines_have_no_loader(sdxl: Path, tmp_path: Path) -> None:
    for family in FAMILIES.values():
        known = [name for name in family.pipelines if hasattr(diffusers, name)]
        assert all(hasattr(getattr(diffusers, name), "load_lora_weights") == family.loras for name in known)
    lora = saved_lora(sdxl, tmp_path / "lora", 1)
    with pytest.raises(ConfigError, match=r"^model.loras: DiTPipeline takes no LoRA; accepted is null\.$"):
        load_model(random_pipelines.save_dit(tmp_path / "dit"), device="cpu", loras=[(lora, 1.0)])


def test_names_of_other_programs(sd_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kohya's names are read by the pipeline's loader, and a file for wider layers is refused before weights load."""
    weights = load_model(sd_directory, dtype="float32", device="cpu").network.state_dict()
    layer = next(key for key in weights if key.endswith("attn1.to_q.weight")).removesuffix(".weight")
    rows, columns = weights[f"{layer}.weight"].shape
    name = f"lora_unet_{layer.replace('.', '_')}"

    def saved(columns: int, file: str) -> Path:
        tensors = {
            f"{name}.lora_down.weight": torch.ones(2, columns),
            f"{name}.lora_up.weight": torch.ones(rows, 2),
            f"{name}.alpha": torch.tensor(2.0),
        }
        save_file(tensors, tmp_path / file)
        return tmp_path / file

    model = load_model(sd_directory, dtype="float32", device="cpu", loras=[(saved(columns, "kohya.safetensors"), 0.5)])
    torch.testing.assert_close(model.network.state_dict()[f"{layer}.weight"], weights[f"{layer}.weight"] + 1.0)
    monkeypatch.setattr(BaseModel, "from_directory", None)
    with pytest.raises(ConfigError, match=rf"is of another model: it has {columns + 1} inputs for unet"):
        load_model(sd_directory, device="cpu", loras=[(saved(columns + 1, "wide.safetensors"), 0.5)])
    odd = tmp_path / "odd.safetensors"
    save_file({"else.lora_A.weight": torch.zeros(2, 4), "else.lora_B.weight": torch.zeros(4, 2)}, odd)
    with pytest.raises(ConfigError, match=r"odd.safetensors (is of another model|does not fit)"):
        load_model(sd_directory, device="cpu", loras=[(odd, 1.0)])


def test_files_of_folders_and_of_the_hub(sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    lora = next(saved_lora(sdxl, tmp_path / "lora", 1).glob("*.safetensors"))
    cache = tmp_path / "cache"
    snapshot = cache / "models--someone--style" / "snapshots" / ("0" * 40)
    (snapshot / "more").mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    for name in ("a.safetensors", "more/b.safetensors"):
        (snapshot / name).write_bytes(lora.read_bytes())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))

    def read(path: str, offline: bool | None = True, **more: Any) -> Path:
        return read_loras([{"path": path, "weight": 1.0, **more}], offline=offline)[0].path

    assert read("someone/style/a.safetensors") == snapshot / "a.safetensors"
    assert read("someone/style/more/b.safetensors", offline=None) == snapshot / "more" / "b.safetensors"
    assert read("someone/style", weight_name="a.safetensors") == snapshot / "a.safetensors"
    assert read(str(snapshot), weight_name="more/b.safetensors") == snapshot / "more" / "b.safetensors"
    assert read(str(snapshot)) == snapshot / "a.safetensors"
    for match, path, more in (
        (r"path: someone/style has 2 .*weight_name: a.safetensors, more/b.safetensors\.$", "someone/style", {}),
        (r"path: no file or folder 'someone/other', .* not in the cache and offline", "someone/other", {}),
        (r"path: loras/a.safetensors is not there; accepted is a .safetensors file", "loras/a.safetensors", {}),
        (r"path: c.bin may run code", "someone/style/c.bin", {}),
        (
            r"weight_name: found 'b.safetensors', and 'a",
            "someone/style/a.safetensors",
            {"weight_name": "b.safetensors"},
        ),
        (r"weight_name: .* has no c.safetensors; accepted: a.saf", str(snapshot), {"weight_name": "c.safetensors"}),
        (r"weight_name: .* has no \.\./x", str(snapshot), {"weight_name": "../x"}),
    ):
        with pytest.raises(ConfigError, match=rf"^model.loras\[0\].{match}"):
            read(path, **more)

"""Directories of every family whose parts were not made for one another, and jobs that do not fit them: said by plans."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from research.errors import ConfigError, ModelError
from research.guidance import CFG, Guidance
from research.jobs.preflight import _say_guided_twice, check_memory, check_model
from research.models.geometry import factor_and_patch
from research.models.inspect.families import FAMILIES, PIPELINES
from research.models.inspect.inspect_model import inspect_model
from research.models.summary import outline
from research.testing.random_pipelines import BUILDERS

WIDTHS = {
    "sd3": "joint_attention_dim", "flux": "joint_attention_dim", "flux schnell": "pooled_projection_dim",
    "chroma": "joint_attention_dim", "pixart-alpha": "caption_channels", "pixart-sigma": "caption_channels",
    "auraflow": "joint_attention_dim", "lumina2": "cap_feat_dim", "sana": "caption_channels",
    "sana-sprint": "caption_channels", "qwen-image": "joint_attention_dim", "sdxl": "cross_attention_dim",
    "sdxl distilled": "cross_attention_dim", "lcm": "cross_attention_dim",
}  # fmt: skip


def job(directory: Path, **task: Any) -> dict[str, Any]:
    model = {"path": str(directory), "allow_pickle": False}
    return {"model": model, "task": task, "scheduler": {"options": {}}, "steps": 2}


def changed(directory: Path, to: Path, part: str, **entries: Any) -> Path:
    """A copy with other entries in a part's config."""
    shutil.copytree(directory, to)
    file = to / part / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    return to


@pytest.mark.spread(4)
@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_parts_that_do_not_fit(name: str, tmp_path: Path) -> None:
    directory = BUILDERS[name](tmp_path / "model")
    family = PIPELINES[json.loads((directory / "model_index.json").read_text())["_class_name"]]
    part = FAMILIES[family].network
    check_model(job(directory))
    config, vae = (json.loads((directory / each / "config.json").read_text()) for each in (part, "vae"))
    known = outline(str(directory))
    assert known is not None
    factor, patch = factor_and_patch(family, config, vae)
    assert (factor, factor * patch) == (known.vae_factor, known.size_multiple)
    with pytest.raises(ConfigError, match=rf"^task.width: found {known.size_multiple + 1}; accepted is a positive"):
        check_model(job(directory, height=known.size_multiple, width=known.size_multiple + 1))
    wide = changed(directory, tmp_path / "wide", part, in_channels=2 * config["in_channels"])
    with pytest.raises(ModelError, match=rf"takes {2 * config['in_channels']} input channels .* and its VAE has"):
        check_model(job(wide))
    assert inspect_model(wide).verdict == "no"
    if key := WIDTHS.get(name):
        with pytest.raises(ModelError, match=rf"takes texts of {config[key] + 8} numbers"):
            check_model(job(changed(directory, tmp_path / "texts", part, **{key: config[key] + 8})))
    if name == "qwen-image":
        with pytest.raises(ModelError, match=r"guidance_embeds is true, with which QwenImagePipeline"):
            check_model(job(changed(directory, tmp_path / "embeds", part, guidance_embeds=True)))


def test_guidance_of_a_model_that_is_told_one(caplog: pytest.LogCaptureFixture) -> None:
    """Its pipeline has none: it works, and is said once."""
    flux = SimpleNamespace(name="a flux", distilled_guidance=3.5)
    for guidance, negative in ((CFG(3.0), "bad"), (Guidance(), None), (CFG(3.0), None), (CFG(3.0), None)):
        _say_guided_twice(guidance, SimpleNamespace(negative_prompt=negative), flux)
    assert [record.getMessage() for record in caplog.records] == [
        "warning: guidance: found CFG with a flux, which has its guidance distilled into it (it is told 3.5): its pipeline "
        "samples it without, as guidance=none does, at half the evaluations."
    ]


def test_memory() -> None:
    for told, device, match in (
        ({"quantize": "nf4"}, None, r"^model.quantize: found nf4, for which bitsandbytes is not installed"),
        ({"offload": "model", "device": "cpu"}, None, r"^model.offload: found model; the model runs on the CPU"),
        ({"offload": "model", "device": "auto"}, "cpu", r"^model.offload: found model; the model runs on the CPU"),
        ({"quantize": "fp8", "compile": True}, None, r"^model.compile: found true with model.quantize=fp8"),
    ):
        with pytest.raises(ConfigError, match=match):
            check_memory(told, device)
    check_memory({"offload": "model", "device": "auto"})  # where the jobs run is not known
    check_memory({"offload": "model", "device": "cuda:1"}, "cpu")

"""What guidance and hooks cannot do with a model or scheduler is refused in one line before anything runs or loads."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from support.tiny_models import save_tiny_pixel, save_tiny_sd

from research.cli import run

PIXEL = ["model=custom", "model.path=pixel", "task=unconditional", "metrics=none"]
MODIFIED = "guidance/modifiers"

CASES: dict[str, tuple[list[str], list[str]]] = {
    "scale NaN": (["guidance.scale=nan"], ["guidance.scale", "NaN"]),
    "scale infinite": (["guidance=apg", "guidance.scale=.inf"], ["guidance.scale", "finite"]),
    "scale text": (["guidance=fdg", "guidance.scale=much"], ["guidance.scale", "'much'"]),
    "negative push": (["guidance=pag", "guidance.scale=-1"], ["guidance.scale", "-1", "from 0"]),
    "CFG++ above 1": (["guidance=cfg_plus_plus", "guidance.scale=7"], ["guidance.scale", "0 to 1"]),
    "CFG++ with memory": (
        ["guidance=cfg_plus_plus", "scheduler=dpmpp_3m"],
        ["CFGPlusPlus", "a scheduler with a CFG++ kind", "ddim", "dpmpp_3m"],
    ),
    "CFG++ with two evaluations": (["guidance=cfg_plus_plus", "scheduler=heun"], ["CFGPlusPlus", "heun"]),
    "x0 where no level is known": (
        ["guidance=apg", "scheduler=custom", "scheduler.class_name=IPNDMScheduler"],
        ["APG", "noise levels are known", "IPNDMScheduler"],
    ),
    "a gradient where no level is known": (
        ["guidance=loss", "scheduler=custom", "scheduler.class_name=IPNDMScheduler"],
        ["LossGuidance", "noise levels are known"],
    ),
    "restart with memory": (["hooks=restart", "scheduler=unipc"], ["Restart", "first-order", "unipc"]),
    "restart with parity": (["hooks=restart", "runtime.parity=true"], ["Restart", "parity"]),
    "no text to guide with": ([*PIXEL, "guidance=cfg"], ["CFG", "uncond", "pixel"]),
    "no sentences": ([*PIXEL, "guidance=perp_neg"], ["PerpNeg", "text"]),
    "prompts that change, without any": ([*PIXEL, "guidance=none", "hooks=dynamic_prompt"], ["text"]),
    "pattern of no layer": (["guidance=seg", "guidance.layers=[middle]"], ["guidance.layers", "middle", "mid_block"]),
    "window turned round": (
        [f"{MODIFIED}=interval", "guidance.modifiers.interval.steps=[0.8,0.2]"],
        ["guidance.modifiers.interval.steps", "[0.8, 0.2]", "lo < hi"],
    ),
    "window out of range": (
        [f"{MODIFIED}=interval", "guidance.modifiers.interval.steps=[0.2,1.2]"],
        ["guidance.modifiers.interval.steps", "0 to 1"],
    ),
    "two windows": (
        [f"{MODIFIED}=interval", "guidance.modifiers.interval.sigma=[0,1]"],
        ["guidance.modifiers.interval", "steps and sigma"],
    ),
    "modifier unknown": ([f"{MODIFIED}=intervals"], ["Did you mean 'interval'?"]),
    "modifier's key unknown": (
        [f"{MODIFIED}=rescale", "+guidance.modifiers.rescale.fi=0.5"],
        ["guidance.modifiers.rescale.fi", "phi"],
    ),
    "modifier around what is given": (
        [f"{MODIFIED}=rescale", "+guidance.modifiers.rescale.guidance=3"],
        ["guidance.modifiers.rescale.guidance"],
    ),
    "modifier without a class": (["+guidance.modifiers.mine.steps=[0,1]"], ["guidance.modifiers.mine", "_target_"]),
    "modifier by a setting alone": (
        ["+guidance.modifiers.interval.steps=[0,1]"],
        ["guidance.modifiers.interval", "_target_"],
    ),
    "weights for fewer prompts": (
        ["guidance=perp_neg", "guidance.prompts=[a,b]", "guidance.weights=[1]"],
        ["guidance.weights", "2"],
    ),
    "weights of nothing": (
        ["guidance=composable", "guidance.prompts=[a]", "guidance.weights=[0]"],
        ["guidance.weights"],
    ),
    "weak model missing": (["guidance=autoguidance", "guidance.model=nowhere"], ["guidance.model", "nowhere"]),
    "weak model of other latents": (["guidance=autoguidance", "guidance.model=odd"], ["guidance.model", "odd"]),
    "weak model without noise": (["guidance=autoguidance", "guidance.noise=0"], ["guidance.noise", "above 0"]),
    "loss unknown": (
        ["guidance=loss", "guidance.loss._target_=research.guidance.losses.Color"],
        ["guidance.loss", "Color"],
    ),
    "loss in an unknown mode": (["guidance=loss", "guidance.mode=both"], ["guidance.mode", "model", "x0"]),
    "picture of a hook missing": (
        ["hooks=differential", "hooks.differential.strength_map=nowhere.png"],
        ["hooks.differential.strength_map", "nowhere.png"],
    ),
    "picture of a loss missing": (
        ["guidance=dps_inpaint", "guidance.loss.mask=nowhere.png"],
        ["guidance.loss.mask", "nowhere.png"],
    ),
    "two that composite": (
        ["hooks=[mask_composite,differential]"],
        ["hooks", "Differential", "MaskComposite", "composite"],
    ),
    "a composite beside inpainting": (
        ["task=inpaint", "task.image=picture.png", "task.mask=picture.png", "hooks=differential"],
        ["Differential", "the task inpaint", "composite"],
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guided")
    save_tiny_sd(folder / "text")
    save_tiny_sd(folder / "odd", seed=2, odd_shape=True)
    save_tiny_pixel(folder / "pixel")
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("text", "odd", "pixel"):
        (tmp_path / name).symlink_to(models / name)
    Image.new("RGB", (16, 16), "teal").save("picture.png")
    return tmp_path


@pytest.mark.parametrize("case", CASES)
@pytest.mark.spread(3)
def test_one_clear_line(
    case: str, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, words = CASES[case]
    # no weights are read
    monkeypatch.setattr("research.models.base.BaseModel.from_directory", None)
    before = sorted(here.iterdir())
    base = ["model=custom", "model.path=text", "tracker=none", "metrics=none", "steps=4", "prompts=[fox,owl]"]
    assert run([*base, *lines]) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if "loading" not in line]
    assert len(said) == 1
    assert said[0].startswith("error: ")
    for word in words:
        assert word in said[0]
    assert sorted(here.iterdir()) == before

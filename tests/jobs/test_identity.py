"""What changes a job's id, and what does not."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from research.jobs.compose import Composer
from research.jobs.identity import identity, job_id
from research.jobs.points import points_of
from research.jobs.validate import validate


@pytest.fixture(scope="module")
def configure() -> Iterator[Callable[..., Any]]:
    """The config that overrides make."""
    with Composer() as composer:

        def configure(*lines: str) -> Any:
            normal = composer.normalise(["tracker=none", "metrics=none", *lines])
            return validate(composer.job(master, normal))

        master = composer.master([])
        yield configure


@pytest.fixture(scope="module")
def identify(configure: Callable[..., Any]) -> Identify:
    """The id of the job that overrides make."""
    return lambda *lines: job_id(configure(*lines))


@pytest.fixture
def base(tiny_sd: Path) -> list[str]:
    return [f"model.path={tiny_sd}", "prompts=[fox,owl]"]


Identify = Callable[..., str]
METRIC = "+metrics.clip_score._target_=research.metrics.CLIPScore"
SAME = {
    "an int or a float": ["guidance.scale=3"],
    "steps as a float": ["steps=25.0"],
    "a default said": ["task.negative_prompt=null"],
    "a constructor's default said": ["+task.height=null"],
    "order": ["seed=0", "guidance.scale=3.0", "steps=25"],
    "where": ["output_dir=elsewhere", "sweep_name=other"],
    "batches": ["batch_size=1"],
    "faults": ["on_failure=stop", "resume=false", "retry=failed"],
    "runtime": ["runtime.threads=1", "runtime.progress=none"],
    "claims and signals": ["runtime.claim_timeout=5", "runtime.grace=1"],
    "which points there are": ["sweep.sample=2", "sweep.seed=3", "sweep.max_points=9", "sweep.exclude='steps=1'"],
    "how the report judges": ["report.margin.fid=10%", "report.unit=seeds"],
    "memory": ["model.attention_slicing=auto", "model.vae_slicing=true", "model.drop_text_encoders=true"],
    "offloading": ["model.offload=model"],
    "no LoRA": ["model.loras=[]"],
    "how fast": ["model.compile=true", "model.channels_last=true"],
    "trusting pickles": ["model.allow_pickle=true"],
    "no hooks": ["hooks=none"],
    "scheduler options, none": ["scheduler.options={}"],
    "a scheduler's short name": ["scheduler.name=mine"],
    "device": ["model.device=cpu"],
    "name of the dtype": ["model.dtype=auto"],
    "offline": ["model.offline=true"],
    "no modifiers": ["guidance/modifiers=none"],
}
OTHER = {
    "steps": ["steps=24"],
    "seed": ["seed=1"],
    "scale": ["guidance.scale=3.5"],
    "guidance": ["guidance=none"],
    "scheduler": ["scheduler=euler"],
    "scheduler option": ["scheduler.options.eta=0.5"],
    "prompt order": ["prompts=[owl,fox]"],
    "prompt": ["prompts=[fox,Owl]"],
    "copies": ["images_per_prompt=2"],
    "negative prompt": ["task.negative_prompt=blurry"],
    "size": ["task.height=32"],
    "dtype": ["model.dtype=float16"],
    "fewer bits": ["model.quantize=fp8"],
    "tiles": ["model.vae_tiling=true"],
    "parity": ["runtime.parity=true"],
    "modifier": ["guidance/modifiers=interval"],
    "modifier's setting": ["guidance/modifiers=interval", "guidance.modifiers.interval.steps=[0.2,0.7]"],
    "modifiers": ["guidance/modifiers=[interval,threshold]"],
    "modifiers in another order": ["guidance/modifiers=[threshold,interval]"],
    "base of a guidance": ["guidance=pag"],
    "base of a guidance, changed": ["guidance=pag", "guidance.base.scale=2"],
    "hook": ["hooks=shift"],
    "hook's setting": ["hooks=shift", "hooks.shift.transform.dx=1"],
    "hooks": ["hooks=[shift,flip]"],
    "seeds of an image": ["seed=1000"],
    "task": ["task=image_to_image"],
    "strength": ["task=image_to_image", "task.strength=0.5"],
    "policy for no steps": ["task=image_to_image", "task.on_no_steps=identity"],
    "metric": [METRIC],
    "metric's setting": [METRIC, "+metrics.clip_score.batch_size=3"],
    "metrics": [METRIC, "+metrics.fid._target_=research.metrics.FID"],
}


@pytest.mark.parametrize("what", SAME)
@pytest.mark.spread(5)
def test_same_meaning_same_id(what: str, base: list[str], identify: Identify) -> None:
    assert identify(*base, *SAME[what]) == identify(*base)


def test_other_meaning_other_id(base: list[str], identify: Identify) -> None:
    found = {what: identify(*base, *lines) for what, lines in OTHER.items()}
    assert len({identify(*base), *found.values()}) == len(OTHER) + 1, found


def test_a_model_is_its_content(
    base: list[str], identify: Identify, tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copytree(tiny_sd, tmp_path / "copy")
    assert identify(*base, f"model.path={copied}") == identify(*base)
    monkeypatch.chdir(tmp_path)
    assert identify(*base, "model.path=./copy") == identify(*base)
    # one weight more or less is another model
    changed = shutil.copytree(tiny_sd, tmp_path / "changed")
    weights = changed / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert identify(*base, f"model.path={changed}") != identify(*base)
    # in the place of one that was asked for before, too
    shutil.copyfile(weights, copied / "unet" / weights.name)
    assert identify(*base, f"model.path={copied}") == identify(*base, f"model.path={changed}")


def test_a_second_model_is_its_content(base: list[str], identify: Identify, tiny_sd: Path, tmp_path: Path) -> None:
    weak = ["guidance=autoguidance", "guidance.model="]
    copied = shutil.copytree(tiny_sd, tmp_path / "copy")
    by_path, by_copy = (identify(*base, weak[0], f"{weak[1]}{path}") for path in (tiny_sd, copied))
    assert by_path == by_copy
    (copied / "unet" / "config.json").write_text((copied / "unet" / "config.json").read_text() + " ")
    assert identify(*base, weak[0], f"{weak[1]}{shutil.copytree(copied, tmp_path / 'other')}") != by_path
    assert identify(*base, weak[0]) != by_path


def test_precision_names_are_one(base: list[str], identify: Identify) -> None:
    assert identify(*base, "model.dtype=fp16") == identify(*base, "model.dtype=float16")


def test_a_scheduler_is_its_class_and_options(base: list[str], identify: Identify) -> None:
    by_class = identify(*base, "scheduler=custom", "scheduler.class_name=DDIMScheduler")
    assert by_class == identify(*base, "scheduler=ddim")


def test_the_order_of_keys_is_none(base: list[str], identify: Identify) -> None:
    one, other = "hooks.b._target_=research.hooks.Record", "hooks.a._target_=research.hooks.NanGuard"
    assert identify(*base, one, other) == identify(*base, other, one)


def test_prompts_are_their_sentences(base: list[str], identify: Identify) -> None:
    """A prompt set is a name for its sentences, and a picture one for what is in its file."""
    import yaml

    from research import config_dir

    sentences = yaml.safe_load((Path(config_dir()) / "prompt_set" / "emoji_8.yaml").read_text())["prompts"]
    written = "prompts=[" + ",".join(f'"{sentence}"' for sentence in sentences) + "]"
    assert identify(base[0], "prompt_set=emoji_8") == identify(base[0], written)


def test_a_picture_is_its_content(
    base: list[str], identify: Identify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    task = [*base, "task=image_to_image"]
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "c.png")
    found = {name: identify(*task, f"task.image={tmp_path / name}.png") for name in "abc"}
    assert found["a"] == found["b"] != found["c"]
    monkeypatch.chdir(tmp_path)
    assert identify(*task, "task.image=a.png") == found["a"]


def test_jobs_of_a_plan_have_the_ids_they_have_alone(base: list[str], identify: Identify) -> None:
    from research.jobs.planning import plan

    axes = ["scheduler=ddim,euler", "guidance=cfg,pag", "steps=2,3.0", "guidance.scale=1,2"]
    with Composer() as composer:
        lines = composer.normalise(["tracker=none", "metrics=none", *base, *axes])
        master = composer.master(lines)
        jobs = plan(composer, master, points_of(composer, master, lines).found)
    assert len({job.id for job in jobs}) == 16
    for job in jobs[::5]:
        assert job.id == identify(*job.overrides[2:])


def test_a_metrics_reference_is_its_content(
    base: list[str], identify: Identify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from research.zoo import zoo_path

    shipped = zoo_path("emoji-eval")
    assert shipped is not None
    for name in ("one", "two"):
        shutil.copytree(shipped, tmp_path / name / "clip")
    named = [*base, METRIC, "+metrics.clip_score.model="]
    monkeypatch.chdir(tmp_path)
    found = {place: identify(*named[:-1], f"{named[-1]}{place}") for place in ("one/clip", tmp_path / "two" / "clip")}
    assert len(set(found.values())) == 1
    (tmp_path / "two" / "clip" / "more.json").write_text("{}")
    assert identify(*named[:-1], f"{named[-1]}two/clip") not in found.values()


@pytest.mark.parametrize(
    ("lines", "revised"),
    [
        (["scheduler=ddim_trailing", "steps=61"], True),
        (["scheduler=ddim_trailing", "steps=60"], False),
        (["scheduler=ddim_trailing", "steps=61", "runtime.parity=true"], False),
        (["scheduler=ddim", "steps=61"], False),
        (["scheduler=euler", "scheduler.options.use_beta_sigmas=true"], True),
        (["scheduler=euler", "scheduler.options.use_beta_sigmas=true", "runtime.parity=true"], False),
    ],
)
def test_levels_that_are_others_than_they_were_have_other_ids(configure, base, lines, revised) -> None:
    assert ("revision" in identity(configure(*base, *lines))["scheduler"]) is revised


INVERSION = ["task=inversion", "task.image=zoo:pizza"]
PIXELS = ["model=emoji_pixel", "task=unconditional", "guidance=none"]


@pytest.mark.parametrize(
    ("lines", "revised"),
    [
        (["scheduler=ddim"], []),
        (["scheduler=pndm"], ["pndm"]),
        (["scheduler=pndm", "runtime.parity=true"], []),
        (["scheduler=euler", "+scheduler.options.s_churn=1"], ["churn"]),
        (["scheduler=unipc", "hooks=record"], []),
        (["scheduler=unipc", "hooks=[record,blur]"], ["unipc"]),
        (["scheduler=dpmpp_2s"], []),
        (["scheduler=dpmpp_2s", "task=image_to_image", "task.image=zoo:pizza"], ["singlestep"]),
        (["scheduler=euler", "hooks=restart"], []),
        (["scheduler=euler", "hooks=restart", "guidance=apg"], ["restart"]),
        (INVERSION, []),
        ([*INVERSION, "hooks=blur"], ["inversion"]),
        ([*PIXELS, "scheduler=ddpm"], []),
        ([*PIXELS, "scheduler=euler"], ["clipping"]),
        ([*PIXELS, "scheduler=euler", "runtime.parity=true"], []),
    ],
)
def test_runs_that_make_other_images_than_they_did_have_other_ids(configure, lines, revised) -> None:
    assert [name.partition(":")[0] for name in identity(configure(*lines)).get("revisions", [])] == revised


def test_a_lora_is_its_content_and_weight(
    base: list[str], identify: Identify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: True if name == "peft" else real(name, *a))
    for name, value in (("one", 1.0), ("two", 2.0)):
        save_file({"unet.conv_in.lora_A.weight": np.full((2, 4), value, np.float32)}, tmp_path / f"{name}.safetensors")
    shutil.copy(tmp_path / "one.safetensors", tmp_path / "copy.safetensors")

    def with_lora(name: str, weight: float) -> str:
        return identify(*base, f"model.loras=[{{path: {tmp_path / name}.safetensors, weight: {weight}}}]")

    assert with_lora("one", 1) == with_lora("copy", 1.0)
    assert len({with_lora("one", 1), with_lora("two", 1), with_lora("one", 0.5), identify(*base)}) == 4

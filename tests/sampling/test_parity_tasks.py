"""``parity=True`` equals the pipelines that start from a picture: image-to-image, both inpaintings, depth-to-image."""

from __future__ import annotations

import copy
import functools
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.scheduler_kinds import of_each_kind, upstream_names
from support.task_samples import flat, left_half, one_pixel, picture, soft

from research import LoopSampler
from research.errors import ConfigError
from research.guidance import CFG
from research.solvers import resolve
from research.tasks import DepthToImage, ImageToImage, Inpaint

pytestmark = pytest.mark.spread(2)

NAMES = [name for name in upstream_names() if not name.startswith("flow")]
# by task: the fixtures of the model and of the pipeline on the same weights
PAIRS = {
    "image": ("sd", "img2img_pipe"),
    "inpaint4": ("sd", "inpaint_pipe"),
    "inpaint9": ("sd_inpaint", "inpaint9_pipe"),
    "depth": ("sd_depth", "depth_pipe"),
}


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest):
    return request.param, *(request.getfixturevalue(name) for name in PAIRS[request.param])


@pytest.fixture
def pairs(request: pytest.FixtureRequest):
    return {task: tuple(request.getfixturevalue(name) for name in names) for task, names in PAIRS.items()}


def options_of(name: str) -> dict[str, Any]:
    # the one class that takes no generator; without a seed upstream draws from the global stream
    return {"noise_sampler_seed": 5} if name == "dpmpp_sde" else {}


@functools.cache
def _built(config: tuple, name: str, options: tuple) -> Any:
    spec = resolve(name)
    return getattr(diffusers, spec.class_name).from_config(dict(config), **{**spec.options, **dict(options)})


def both(
    pair,
    name: str,
    image: Any,
    *,
    mask: Any = None,
    depth: torch.Tensor | None = None,
    prompt: Any = "a cat",
    negative: Any = None,
    seeds: tuple[int, ...] = (3,),
    steps: int = 6,
    strength: float = 0.6,
    scale: float = 3.0,
    options: dict[str, Any] | None = None,
    **size: int,
):
    """Latents and images of the pipeline, and our result."""
    task, model, pipe = pair
    options = {**options_of(name), **(options or {})}
    config = tuple(sorted(model.scheduler_config.items(), key=str))
    hashable = tuple((k, v) for k, v in config if not isinstance(v, list | dict))
    pipe.scheduler = copy.deepcopy(_built(hashable, name, tuple(sorted(options.items()))))
    kept: list[torch.Tensor] = []

    def keep(pipe, step, t, values):
        kept[:] = [values["latents"]]
        return {}

    inpainting = task.startswith("inpaint")
    given: dict[str, Any] = {"mask_image": mask} if inpainting else {"depth_map": depth} if depth is not None else {}
    images = pipe(
        prompt,
        image=image,
        strength=strength,
        negative_prompt=negative,
        num_inference_steps=steps,
        guidance_scale=scale,
        num_images_per_prompt=len(seeds) if isinstance(prompt, str) else 1,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        callback_on_step_end=keep,
        **given,
        **size,
    ).images
    sampler = LoopSampler(model, scheduler=name, scheduler_options=options, guidance=CFG(scale), parity=True)
    common: dict[str, Any] = {"strength": strength, "negative_prompt": negative, **size}
    made = {
        "image": lambda: ImageToImage(prompt, image, **common),
        "inpaint4": lambda: Inpaint(prompt, image, mask, **common),
        "inpaint9": lambda: Inpaint(prompt, image, mask, **common),
        "depth": lambda: DepthToImage(prompt, image, depth, **common),
    }
    return kept[0], images, sampler.sample(made[task](), seeds=seeds, steps=steps)


def assert_equal(pair, name: str, image: Any, **settings: Any) -> None:
    latents, images, found = both(pair, name, image, **settings)
    assert torch.isfinite(latents).all()
    assert torch.equal(latents, found.latents), f"{name}: up to {(latents - found.latents).abs().max()}"
    assert [i.tobytes() for i in images] == [i.tobytes() for i in found.images]


MASKS = {"image": None, "inpaint4": soft(21, 20), "inpaint9": soft(21, 20), "depth": None}
# strength, steps, scale, and whether it is a batch with a picture each
ROTATED = [(0.3, 7, 1.0, False), (0.47, 9, 3.0, True), (0.55, 5, 7.5, False), (0.83, 6, 2.0, True), (1.0, 5, 4.0, True)]


@pytest.mark.parametrize("name", of_each_kind(NAMES))
@pytest.mark.spread(3)
def test_every_scheduler(pair, name):
    """One setting each, another one for each task; `experiments/parity` has them all."""
    place = NAMES.index(name) + 2 * list(PAIRS).index(pair[0])
    strength, steps, scale, batch = ROTATED[place % len(ROTATED)]
    image: Any = picture(19, 18)
    chosen: dict[str, Any] = {"strength": strength, "steps": steps, "scale": scale, "mask": MASKS[pair[0]]}
    if batch:
        image = [image, picture(16, 25, 1)]
        chosen |= {"prompt": ["a cat", "no dog"], "negative": ["x", ""], "seeds": (3, 2**40)}
    assert_equal(pair, name, image, **chosen)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "heun", "dpmpp_2m", "unipc", "pndm", "lms"])
@pytest.mark.parametrize("task", ["image", "inpaint4"])
@pytest.mark.spread(1)
def test_v_prediction(pairs, sd_v, name, task):
    """The pipeline takes the kind of prediction from the scheduler, so the weights need not be others."""
    assert_equal(
        (task, *pairs[task]), name, picture(), mask=soft(), strength=0.55, options={"prediction_type": "v_prediction"}
    )


# --- strengths and steps


@pytest.mark.parametrize(("strength", "steps"), [(0.1, 10), (0.1, 19), (0.05, 20), (0.999, 5), (1.0, 1), (0.07, 100)])
@pytest.mark.parametrize(("name", "task"), [("ddim", "image"), ("dpm2", "inpaint4"), ("pndm", "image")])
@pytest.mark.spread(3)
def test_odd_slices(pairs, name, task, strength, steps):
    assert_equal((task, *pairs[task]), name, picture(), mask=left_half(), strength=strength, steps=steps, scale=1.0)


@pytest.mark.slow
def test_the_rounding_of_the_pipelines(pairs):
    latents, _, found = both(("image", *pairs["image"]), "ddim", picture(), strength=0.29, steps=100, scale=1.0)
    assert torch.equal(latents, found.latents)
    assert found.nfe == 28


def test_a_first_timestep_that_is_none_but_is_left_out(pairs):
    """With an offset of 1, 1000 steps begin at timestep 1000 of 0 to 999; a slice does not look at it."""
    for name in ("ddim", "euler"):
        assert_equal(("image", *pairs["image"]), name, picture(), strength=0.003, steps=1000, scale=1.0)


@pytest.mark.slow
def test_steps_that_change_a_solver(pairs):
    """DPM++ falls back to first order at the end of fewer than 15 steps: of the full schedule and not of the slice."""
    for steps in (14, 15):
        for strength in (0.3, 1.0):
            assert_equal(("image", *pairs["image"]), "dpmpp_2m", picture(), strength=strength, steps=steps, scale=1.0)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    task=st.sampled_from(sorted(PAIRS)),
    name=st.sampled_from(NAMES),
    strength=st.floats(0.11, 1.0),
    steps=st.integers(9, 20),
    seed=st.integers(0, 2**63 - 1),
    scale=st.floats(0.0, 12.0),
)
@pytest.mark.slow
def test_any_setting(pairs, task, name, strength, steps, seed, scale):
    if int(strength * steps) < 1:
        strength = 0.5
    # the pipelines take a scale up to 1 as none, and ours at 0 asks for the unconditional prediction alone
    scale = scale if scale > 1 else 1.0
    latents, _, found = both(
        (task, *pairs[task]), name, picture(), mask=soft(), strength=strength, steps=steps, seeds=(seed,), scale=scale
    )
    assert torch.equal(latents, found.latents)


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_scales_that_are_no_guidance(pair, scale):
    assert_equal(pair, "ddim", picture(), mask=soft(), scale=scale, negative="dog")


# --- sizes


@pytest.mark.parametrize("size", [(16, 16), (19, 18), (32, 24), (8, 40), (9, 9), (17, 33)])
@pytest.mark.spread(3)
def test_sizes_of_the_picture(pair, size):
    assert_equal(pair, "euler", picture(*size), mask=left_half(*size))


@pytest.mark.parametrize("size", [{"height": 24, "width": 32}, {"height": 8, "width": 40}])
def test_sizes_that_are_asked_for(pairs, size):
    for task in ("inpaint4", "inpaint9"):
        assert_equal((task, *pairs[task]), "ddim", picture(19, 18), mask=soft(30, 11), **size)


@pytest.mark.slow
def test_masks_and_pictures_of_other_sizes(pairs):
    for task in ("inpaint4", "inpaint9"):
        for mask in (left_half(5, 9), soft(64, 48), left_half(16, 17)):
            assert_equal((task, *pairs[task]), "dpmpp_2m", picture(40, 23), mask=mask)


# --- kinds of pictures


def floats(width: int = 16, height: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, 3), dtype=np.float32 if seed == 0 else np.float64)


def channels_first(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


@pytest.mark.parametrize("size", [(16, 16), (22, 18), (20, 24)])
@pytest.mark.parametrize(
    "kind", ["array", "array of doubles", "tensor", "batch of arrays", "batch of tensors", "list", "grey"]
)
@pytest.mark.spread(2)
def test_kinds_of_pictures(pairs, kind, size):
    first, second = floats(*size), floats(*size, seed=1)
    image, batch = {
        "array": (first, False),
        "array of doubles": (second, False),
        "tensor": (channels_first(first), False),
        "batch of arrays": (np.stack([first, second]), True),
        "batch of tensors": (torch.stack([channels_first(first), channels_first(second)]), True),
        "list": ([first, second], True),
        "grey": (picture(*size).convert("L").convert("RGB"), False),
    }[kind]
    chosen = {"prompt": ["a", "b"], "seeds": (5, 6)} if batch else {}
    for task in ("image", "inpaint4", "inpaint9"):
        assert_equal((task, *pairs[task]), "ddim", image, mask=left_half(*size), **chosen)


@pytest.mark.parametrize("task", ["inpaint4", "inpaint9"])
@pytest.mark.parametrize(
    "mask",
    [
        soft(),
        soft().convert("RGB"),
        left_half().convert("1"),
        np.asarray(soft(), dtype=np.float32) / 255,
        torch.from_numpy(np.asarray(soft(), dtype=np.float32) / 255),
        torch.from_numpy(np.asarray(soft(20, 24), dtype=np.float32) / 255)[None],
        flat(0),
        flat(255),
        flat(127),
        flat(128),
        one_pixel(),
        one_pixel(x=4, y=6),
    ],
    ids=lambda mask: type(mask).__name__,
)  # fmt: skip
@pytest.mark.spread(5)
def test_kinds_of_masks(pairs, task, mask):
    before = copy.deepcopy(mask)
    assert_equal((task, *pairs[task]), "euler", picture(), mask=copy.deepcopy(mask))  # a pipeline may cut it in place
    model, _ = pairs[task]
    LoopSampler(model, scheduler="euler", parity=True).sample(Inpaint("a", picture(), mask, 0.6), seeds=[3], steps=2)
    assert np.asarray(mask).tobytes() == np.asarray(before).tobytes()


def test_a_mask_each(pairs):
    masks, images = [left_half(), soft(18, 20)], [picture(), picture(20, 18, 1)]
    for task in ("inpaint4", "inpaint9"):
        chosen = {"mask": masks, "prompt": ["a", "b"], "seeds": (5, 6)}
        assert_equal((task, *pairs[task]), "euler_a", images, **chosen)
        assert_equal((task, *pairs[task]), "euler_a", images, **chosen, strength=1.0)


@pytest.mark.spread(1)
def test_one_picture_for_several_images(pair):
    chosen: dict[str, Any] = {"mask": MASKS[pair[0]], "strength": 0.8}
    assert_equal(pair, "ddim", picture(), seeds=(1, 2, 3), **chosen)
    assert_equal(pair, "ddpm", picture(), prompt=["a", "b"], seeds=(1, 2), **chosen)
    assert_equal(pair, "dpm2_a", [picture()], prompt=["a", "b"], seeds=(1, 2), **chosen)


# --- depth


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 8, 8), (1, 40, 40)])
@pytest.mark.spread(1)
def test_a_depth_map_that_is_given(pairs, shape):
    depth = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 40 + 7
    for strength in (0.5, 1.0):
        assert_equal(("depth", *pairs["depth"]), "ddim", picture(), depth=depth, strength=strength)
        assert_equal(("depth", *pairs["depth"]), "heun", picture(), depth=depth, strength=strength, seeds=(1, 2))


def test_a_depth_map_each(pairs):
    depth = torch.rand((2, 18, 20), generator=torch.Generator().manual_seed(0))
    images = [picture(20, 18), picture(20, 18, 1)]
    assert_equal(("depth", *pairs["depth"]), "ddim", images, depth=depth, prompt=["a", "b"], seeds=(5, 6))


@pytest.mark.parametrize("batched", [False, True])
def test_floats_reach_the_estimator_as_the_pipeline_hands_them_on(pairs, batched):
    image = channels_first(floats(20, 16))
    assert_equal(("depth", *pairs["depth"]), "ddim", image[None] if batched else [image])
    square = floats(16, 16, seed=1)  # the pipeline takes the sides of arrays the wrong way round
    assert_equal(("depth", *pairs["depth"]), "ddim", square[None] if batched else [square])


# --- where the pipelines fail


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "pndm", "dpmpp_2m"])
def test_no_step_left(pair, name):
    """The pipelines raise whatever comes; with PNDM, which has an evaluation more, image-to-image makes one of no step."""
    task, model, pipe = pair
    if name != "pndm":
        pipe.scheduler = getattr(diffusers, resolve(name).class_name).from_config(model.scheduler_config)
        given = {"mask_image": soft()} if "inpaint" in task else {}
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            pipe("a", image=picture(), strength=0.04, num_inference_steps=20, **given)
    made = Inpaint("a", picture(), soft(), 0.04) if "inpaint" in task else None
    made = made or (DepthToImage("a", picture(), None, 0.04) if task == "depth" else ImageToImage("a", picture(), 0.04))
    with pytest.raises(ConfigError, match=r"^task\.strength: 0\.04 of 20 steps is no whole step; .*from 25 steps"):
        LoopSampler(model, scheduler=name, parity=True).sample(made, seeds=[3], steps=20)

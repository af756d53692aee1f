"""What a case of this study is, and the small models that the cases share."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

N_LABELS = 10


@dataclass(frozen=True)
class Found:
    """What a case showed: whether upstream does what the claim says, and the numbers that show it."""

    reproduced: bool
    numbers: str


@dataclass(frozen=True)
class Case:
    """One claim about diffusers."""

    where: str  # the class or function
    claim: str
    ours: str  # what this project does instead
    run: Callable[[], Found]

    @property
    def name(self) -> str:
        return self.run.__name__


CASES: list[Case] = []


def case(where: str, claim: str, ours: str) -> Callable[[Callable[[], Found]], Callable[[], Found]]:
    """Enter a function as a case. It runs without gradients and with the same global seed, whatever ran before."""

    def enter(function: Callable[[], Found]) -> Callable[[], Found]:
        @functools.wraps(function)
        def run() -> Found:
            state = torch.random.get_rng_state()
            torch.manual_seed(0)
            try:
                with torch.no_grad():
                    return function()
            finally:
                torch.random.set_rng_state(state)

        CASES.append(Case(where, claim, ours, run))
        return run

    return enter


@functools.cache
def _transformer() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=N_LABELS,
        norm_num_groups=4,
    ).eval()


def transformer() -> nn.Module:
    """A class-conditional transformer of four blocks with random weights (the guiders' layer hooks know transformers)."""
    return copy.deepcopy(_transformer())


@functools.cache
def _emoji() -> Any:
    from diffusers import StableDiffusionPipeline

    from research.zoo import zoo_path

    pipeline = StableDiffusionPipeline.from_pretrained(zoo_path("emoji"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def emoji() -> Any:
    """The embedded model as a fresh `StableDiffusionPipeline`; its UNet is a copy, so that hooks and processors stay here."""
    from diffusers import StableDiffusionPipeline

    parts = dict(_emoji().components)
    pipeline = StableDiffusionPipeline(**{**parts, "unet": copy.deepcopy(parts["unet"])}, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(pipeline: Any, seed: int = 0, steps: int = 6, **settings: Any) -> Tensor:
    """Latents that a pipeline makes of one prompt and one seed."""
    given = {"prompt": "pizza on a blue background", "output_type": "latent", **settings}
    generator = torch.Generator("cpu").manual_seed(seed)
    return pipeline(num_inference_steps=steps, generator=generator, **given).images


def guided(
    guider: Any, model: nn.Module, x: Tensor, *, step: int, steps: int, cond: int = 1, uncond: int = 2
) -> tuple[Tensor, dict[str, Tensor]]:
    """One evaluation as diffusers' modular loops do it (`modular_pipelines/*/denoise.py`): the guided prediction, and what
    each batch predicted by name."""
    t = torch.full((len(x),), 500)
    labels = tuple(torch.full((len(x),), label) for label in (cond, uncond))
    guider.set_state(step=step, num_inference_steps=steps, timestep=t)
    batches = guider.prepare_inputs({"class_labels": labels})
    predictions = {}
    for batch in batches:
        guider.prepare_models(model)
        batch.noise_pred = model(x, timestep=t, class_labels=batch.class_labels).sample
        predictions[getattr(batch, guider._identifier_key)] = batch.noise_pred
        guider.cleanup_models(model)
    return guider(batches).pred, predictions


@contextlib.contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """How many rows each evaluation of a model had."""
    rows: list[int] = []
    handle = model.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    try:
        yield rows
    finally:
        handle.remove()


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference."""
    return float((a - b).abs().max())


def hooks_on(model: nn.Module) -> int:
    """How many hooks diffusers has on a model and its parts."""
    registries = [getattr(part, "_diffusers_hook", None) for part in model.modules()]
    return sum(len(registry.hooks) for registry in registries if registry is not None)


def raised(action: Callable[[], Any]) -> str:
    """The error of an action in one line, or nothing."""
    try:
        action()
    except Exception as error:
        lines = str(error).splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else ''}"
    return ""


def has_kornia() -> bool:
    return "kornia" in sys.modules or importlib.util.find_spec("kornia") is not None

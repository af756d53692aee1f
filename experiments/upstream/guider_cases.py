"""Claims about `diffusers.guiders`: branches, layers and windows."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import torch
from cases import Found, case, counted, gap, guided, raised, transformer

SCALE = 2.8


@case(
    "SmoothedEnergyGuidance",
    "SEG never attaches its hook, and pays an evaluation a stage for nothing: its `prepare_models` does not count the batches.",
    "SEG blurs the queries of its own branch; a branch that comes out equal to the plain one is an error.",
)
def seg_never_attaches() -> Found:
    from diffusers.guiders import SmoothedEnergyGuidance
    from diffusers.hooks.smoothed_energy_guidance_utils import SmoothedEnergyGuidanceConfig

    model, x = transformer(), torch.randn(2, 4, 8, 8)
    guider = SmoothedEnergyGuidance(5.0, SCALE, seg_guidance_config=SmoothedEnergyGuidanceConfig([1, 2]))
    with counted(model) as rows:
        _, predictions = guided(guider, model, x, step=5, steps=10)
    moved = gap(predictions["pred_cond"], predictions["pred_cond_seg"])
    return Found(
        len(rows) == 3 and moved == 0,
        f"{len(rows)} evaluations; largest difference of `pred_cond` and `pred_cond_seg`: {moved:g}",
    )


@case(
    "hooks.smoothed_energy_guidance_utils",
    "The blur of SEG is the wrong way round: a finite sigma gives the mean of all queries, an infinite one a box blur; "
    "`seg_blur_threshold_inf` never reaches the hook.",
    "A finite sigma is a Gaussian blur of the query grid, an infinite one the mean (arXiv:2408.00760).",
)
def seg_blur_is_swapped() -> Found:
    from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d

    query = torch.randn(1, 64, 16)

    def spread(sigma: float) -> float:
        size = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2
        blurred = _gaussian_blur_2d(query.clone(), size, sigma, 9999.0)
        return float(blurred.std(dim=1).mean() / query.std(dim=1).mean())

    small, infinite = spread(0.1), spread(9999999.0)
    return Found(
        small < 1e-6 < infinite,
        f"spread left of the queries: {small:.2g} at sigma 0.1 (right: 1), {infinite:.2g} at an infinite sigma (right: 0)",
    )


def _wrong_branch(guider: Any, name: str) -> Found:
    model, x = transformer(), torch.randn(2, 4, 8, 8)
    pred, _ = guided(guider, model, x, step=5, steps=10)
    t = torch.full((2,), 500)
    c, u = (model(x, timestep=t, class_labels=torch.full((2,), label)).sample for label in (1, 2))
    away = gap(pred, u + SCALE * (c - u))
    return Found(away < 1e-5, f"largest difference of {name} at scale {SCALE} from CFG at scale {SCALE}: {away:.1g}")


@case(
    "PerturbedAttentionGuidance",
    "With CFG off (`guidance_scale=1`) the second batch of PAG is the unconditional one, and unpatched: the result is CFG.",
    "PAG's second branch is the conditional one, patched, whatever its base is.",
)
def pag_without_cfg_is_cfg() -> Found:
    from diffusers.guiders import PerturbedAttentionGuidance

    guider = PerturbedAttentionGuidance(
        1.0, SCALE, perturbed_guidance_start=0.0, perturbed_guidance_stop=1.0, perturbed_guidance_layers=[1]
    )
    return _wrong_branch(guider, "PAG")


@case(
    "SkipLayerGuidance",
    "The same with skipped layers: SLG without CFG is CFG.",
    "SLG's second branch is the conditional one with layers skipped.",
)
def slg_without_cfg_is_cfg() -> Found:
    from diffusers.guiders import SkipLayerGuidance
    from diffusers.hooks import LayerSkipConfig

    guider = SkipLayerGuidance(
        1.0, SCALE, skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0, skip_layer_config=LayerSkipConfig([1])
    )
    return _wrong_branch(guider, "SLG")


@case(
    "SkipLayerGuidance, AutoGuidance",
    "Layers by number (`skip_layer_guidance_layers=[1]`) end in an error at the first evaluation that needs them.",
    "Layers are names or patterns; one that matches nothing is an error when the job is composed, and lists what there is.",
)
def layers_by_number_fail() -> Found:
    from diffusers.guiders import AutoGuidance, SkipLayerGuidance

    x = torch.randn(1, 4, 8, 8)
    found = [
        raised(lambda guider=guider: guided(guider, transformer(), x, step=1, steps=10))
        for guider in (
            SkipLayerGuidance(5.0, SCALE, skip_layer_guidance_layers=[1], skip_layer_guidance_stop=1.0),
            AutoGuidance(5.0, auto_guidance_layers=[1], dropout=0.1),
        )
    ]
    return Found(all(found), "; ".join(f"`{line}`" for line in found if line) or "no error")


@case(
    "PerturbedAttentionGuidance, SkipLayerGuidance",
    "One scale, two meanings: with CFG off the update is `p + s (c - p)`, with CFG on `... + s (c - p)`; the paper adds.",
    "`g + s (c - p)` around any base (arXiv:2403.17377); scale 0 is no guidance.",
)
def pag_scale_means_two_things() -> Found:
    from diffusers.guiders import PerturbedAttentionGuidance

    c, u, p = torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([0.0])

    def result(cfg: float) -> float:
        guider = PerturbedAttentionGuidance(
            cfg, SCALE, perturbed_guidance_start=0.0, perturbed_guidance_stop=1.0, perturbed_guidance_layers=[1]
        )
        guider.set_state(step=5, num_inference_steps=10, timestep=torch.tensor(500))
        given = {"pred_cond": c, "pred_cond_skip": p} | ({"pred_uncond": u} if cfg != 1 else {})
        return float(guider.forward(**given).pred)

    off, on = result(1.0), result(1.0001)
    return Found(
        abs(off - on) > 0.5, f"c = u = 1, p = 0, scale {SCALE}: {off:.4g} at CFG scale 1, {on:.4g} at CFG scale 1.0001"
    )


@case(
    "PerturbedAttentionGuidance, SkipLayerGuidance, SmoothedEnergyGuidance",
    "The first step is never guided, whatever `start` says, and with the default window no step is below 10 steps.",
    "`Interval(steps=(0, 0.2))` holds the first fifth of the steps, the first included; a window that holds none is warned of.",
)
def windows_leave_out_the_first_step() -> Found:
    from diffusers.guiders import PerturbedAttentionGuidance

    def active(steps: int, **window: float) -> int:
        guider = PerturbedAttentionGuidance(7.5, SCALE, perturbed_guidance_layers=[1], **window)
        count = 0
        for step in range(steps):
            guider.set_state(step=step, num_inference_steps=steps, timestep=torch.tensor(500))
            count += guider._is_slg_enabled()
        return count

    whole = active(10, perturbed_guidance_start=0.0, perturbed_guidance_stop=1.0)
    counts = {steps: active(steps) for steps in (5, 9, 10, 25)}
    said = ", ".join(f"{count} of {steps}" for steps, count in counts.items())
    return Found(
        whole == 9 and counts[9] == 0, f"window [0, 1] guides {whole} of 10 steps; the default [0.01, 0.2]: {said}"
    )


def _modular(scheduler: Any, guider: Any, steps: int = 10) -> tuple[int, int]:
    """Stages and model evaluations of the modular SDXL loop with a small random UNet."""
    from diffusers import UNet2DConditionModel
    from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLDenoiseStep

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=4 * 6 + 8,
    )
    pipeline = StableDiffusionXLDenoiseStep().init_pipeline()
    for block in (pipeline.blocks, *pipeline.blocks.sub_blocks.values()):
        if hasattr(block, "set_progress_bar_config"):
            block.set_progress_bar_config(disable=True)
    pipeline.update_components(unet=unet, scheduler=scheduler, guider=guider)
    scheduler.set_timesteps(steps)
    fields = {}
    for sign in ("", "negative_"):
        fields[f"{sign}prompt_embeds"] = torch.randn(1, 4, 16)
        fields[f"{sign}pooled_prompt_embeds"] = torch.randn(1, 8)
        fields[f"{'negative_' if sign else ''}add_time_ids"] = torch.zeros(1, 6)
    with counted(unet) as rows:
        pipeline(
            latents=torch.randn(1, 4, 8, 8) * scheduler.init_noise_sigma,
            timesteps=scheduler.timesteps,
            num_inference_steps=steps,
            denoiser_input_fields=fields,
            output="latents",
        )
    return len(scheduler.timesteps), len(rows)


@case(
    "modular_pipelines (SDXL and others)",
    "Windows count evaluations against steps: with Heun, CFG over [0, 1] stops half way.",
    "Windows count the user's steps; `result.nfe_by_branch` shows it, with Heun and PNDM too.",
)
def windows_count_evaluations() -> Found:
    from diffusers import DDIMScheduler, HeunDiscreteScheduler
    from diffusers.guiders import ClassifierFreeGuidance

    stages, first = _modular(DDIMScheduler(), ClassifierFreeGuidance(5.0))
    heun_stages, heun = _modular(HeunDiscreteScheduler(), ClassifierFreeGuidance(5.0))
    return Found(
        first == 2 * stages and heun < 2 * heun_stages,
        f"10 steps: DDIM {first} of {2 * stages} evaluations, Heun {heun} of {2 * heun_stages}",
    )


@case(
    "modular_pipelines (SDXL)",
    "`guider.disable()` is undone by the loop, which enables the guider again.",
    "Guidance is what the job says; there is no switch beside it.",
)
def the_loop_enables_a_disabled_guider() -> Found:
    from diffusers import DDIMScheduler
    from diffusers.guiders import ClassifierFreeGuidance

    guider = ClassifierFreeGuidance(5.0)
    guider.disable()
    stages, evaluations = _modular(DDIMScheduler(), guider)
    return Found(evaluations == 2 * stages, f"disabled, {stages} steps: {evaluations} evaluations (right: {stages})")


@case(
    "hooks.LayerSkipConfig, SmoothedEnergyGuidanceConfig",
    "`fqn='auto'` goes through a set of names, so that the layers which PAG, SLG and AutoGuidance touch in a model with two "
    "stacks (Flux) depend on Python's hash seed.",
    "A layer pattern means the same layers in every process.",
)
def auto_layers_depend_on_the_hash_seed() -> Found:
    import inspect

    from diffusers.hooks import _common

    built_of_a_set = "tuple(\n    {" in inspect.getsource(_common)
    names = sorted(_common._ALL_TRANSFORMER_BLOCK_IDENTIFIERS)
    stacks = ("transformer_blocks", "single_transformer_blocks")
    program = f"print(next(name for name in {{{str(names)[1:-1]}}} if name in {stacks}))"
    found = []
    for seed in range(8):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        found.append(
            subprocess.run(
                [sys.executable, "-S", "-c", program], env=environment, capture_output=True, text=True, check=True
            ).stdout.strip()
        )
    counts = ", ".join(f"`{name}` at {found.count(name)}" for name in stacks)
    return Found(built_of_a_set and len(set(found)) == 2, f"of 8 hash seeds: {counts}")

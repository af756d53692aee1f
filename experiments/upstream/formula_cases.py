"""Claims about `diffusers.guiders`: how the predictions are combined."""

from __future__ import annotations

import math

import torch
from cases import Found, case, gap, guided, has_kornia, raised, transformer
from torch import Tensor


@case(
    "FrequencyDecoupledGuidance",
    "A band at scale 1, or outside its window, takes another band's prediction or none: an error.",
    "FDG takes any scale a band; equal ones are CFG.",
)
def fdg_mixes_up_levels() -> Found:
    from diffusers.guiders import frequency_decoupled_guidance as module

    before = module._CAN_USE_KORNIA, module.build_laplacian_pyramid_func, module.upsample_and_blur_func
    if not has_kornia():  # an optional dependency: a pyramid of our own, for the guider's loop over it
        module._CAN_USE_KORNIA = True
        module.build_laplacian_pyramid_func, module.upsample_and_blur_func = _pyramid, _up
    try:
        c, u = torch.randn(2, 1, 4, 16, 16)
        found = {}
        for scales in ([5.0, 5.0], [5.0, 1.0], [1.0, 5.0]):
            guider = module.FrequencyDecoupledGuidance(scales)
            found[str(scales)] = raised(lambda guider=guider: guider.forward(c, u)) or "works"
    finally:
        module._CAN_USE_KORNIA, module.build_laplacian_pyramid_func, module.upsample_and_blur_func = before
    first, *others = found.values()
    shown = "; ".join(f"scales {scales}: {text.split(': ')[0]}" for scales, text in found.items())
    return Found(first == "works" and all(text != "works" for text in others), shown)


def _up(x: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")


def _pyramid(x: Tensor, levels: int) -> list[Tensor]:
    found = []
    for _ in range(levels - 1):
        low = torch.nn.functional.avg_pool2d(x, 2)
        found.append(x - _up(low))
        x = low
    return [*found, x]


@case(
    "ClassifierFreeZeroStarGuidance",
    "`guidance_rescale` with zeroed first steps divides nothing by nothing: NaN in every latent, without a word.",
    "CFGZero and Rescale compose; latents that are not finite end the job with stage and step.",
)
def cfg_zero_rescaled_is_nan() -> Found:
    from diffusers.guiders import ClassifierFreeZeroStarGuidance

    guider = ClassifierFreeZeroStarGuidance(5.0, guidance_rescale=0.7)
    guider.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(900))
    c, u = torch.randn(2, 1, 4, 8, 8)
    bad = int(guider.forward(c, u).pred.isnan().sum())
    return Found(bad == c.numel(), f"{bad} of {c.numel()} values are NaN at the first step")


@case(
    "ClassifierFreeZeroStarGuidance",
    "Zeroed first steps are meant for flow matching, where nothing moves. A noise prediction of zero is not that: it says that "
    "the latents are all picture.",
    "CFGZero stands still with v = 0 (flow = 0 for flow models), whatever the model predicts.",
)
def cfg_zero_zeroes_the_noise() -> Found:
    from diffusers import DDIMScheduler
    from diffusers.guiders import ClassifierFreeZeroStarGuidance

    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(10)
    guider = ClassifierFreeZeroStarGuidance(5.0)
    t, x = scheduler.timesteps[0], torch.randn(1, 4, 64, 64)
    guider.set_state(step=0, num_inference_steps=10, timestep=t)
    noise = guider.forward(torch.randn_like(x), torch.randn_like(x)).pred
    after = float(scheduler.step(noise, t, x).prev_sample.std() / x.std())
    return Found(after > 1.3, f"DDIM, 10 steps: the first step scales the latents by {after:.3f} (right: 1)")


@case(
    "AdaptiveProjectedGuidance",
    "APG works on what the model predicts: the same pair of predictions as noise and as v gives two results. The paper has x0.",
    "APG converts to x0 first (`space`), so that noise, v and flow models give the same.",
)
def apg_depends_on_the_prediction_type() -> Found:
    from diffusers.guiders import AdaptiveProjectedGuidance

    a, b = math.sqrt(0.3), math.sqrt(0.7)
    x, c0, u0 = torch.randn(3, 1, 4, 8, 8)
    noise = [(x - a * clean) / b for clean in (c0, u0)]
    v = [a * e - b * clean for e, clean in zip(noise, (c0, u0), strict=True)]

    def apart(**settings: float) -> float:
        guider = AdaptiveProjectedGuidance(5.0, adaptive_projected_guidance_rescale=0.0, **settings)
        guider.set_state(step=1, num_inference_steps=10, timestep=torch.tensor(500))
        by_noise = (x - b * guider.forward(*noise).pred) / a
        by_v = a * x - b * guider.forward(*v).pred
        return float((by_noise - by_v).norm() / by_v.norm())

    plain, projected = apart(eta=1.0), apart(eta=0.0)
    return Found(
        plain < 1e-5 and projected > 0.05,
        f"relative difference in x0: {projected:.2f} at eta 0 (at eta 1, which is CFG: {plain:.1g})",
    )


@case(
    "AutoGuidance",
    "The weak prediction has the negative prompt: CFG is mixed in. The paper's weak model has the same condition.",
    "Autoguidance gives its second model the same condition (arXiv:2406.02507).",
)
def autoguidance_mixes_in_cfg() -> Found:
    from diffusers.guiders import AutoGuidance
    from diffusers.hooks import LayerSkipConfig

    model, x = transformer(), torch.randn(1, 4, 8, 8)
    predictions = [
        guided(AutoGuidance(2.0, auto_guidance_config=LayerSkipConfig([1])), model, x, step=1, steps=10, uncond=label)[
            1
        ]["pred_uncond"]
        for label in (2, 3)
    ]
    moved = gap(*predictions)
    return Found(moved > 1e-3, f"the weak prediction moves by {moved:.2g} with the negative condition (right: 0)")


@case(
    "AutoGuidance",
    "Its dropout draws from the global generator: the same seed gives another image, and other draws are moved.",
    "Whatever a method draws comes from the image's own stream.",
)
def autoguidance_draws_globally() -> Found:
    from diffusers.guiders import AutoGuidance
    from diffusers.hooks import LayerSkipConfig

    model, x = transformer(), torch.randn(1, 4, 8, 8)
    one, two = (
        guided(AutoGuidance(2.0, auto_guidance_config=LayerSkipConfig([1], dropout=0.3)), model, x, step=1, steps=10)[0]
        for _ in range(2)
    )
    return Found(gap(one, two) > 1e-3, f"two evaluations of the same latents differ by {gap(one, two):.2g}")


@case(
    "TangentialClassifierFreeGuidance",
    "`is_conditional`, which the SDXL ControlNet loop reads in guess mode, asks for an attribute that does not exist.",
    "There is no such property: a branch has a name.",
)
def tcfg_is_conditional_fails() -> Found:
    from diffusers.guiders import TangentialClassifierFreeGuidance

    error = raised(lambda: TangentialClassifierFreeGuidance().is_conditional)
    return Found(bool(error), error or "no error")

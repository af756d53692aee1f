"""Claims about the pipelines' own guidance."""

from __future__ import annotations

from typing import Any

from cases import Found, case, counted, emoji, gap, latents, raised

FAILS_AT = 2


class Stop(Exception):
    """What a user's callback raises."""


def _stop(pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
    if step == FAILS_AT:
        raise Stop("a callback failed")
    return values


@case(
    "StableDiffusionPAGPipeline",
    "An exception leaves the perturbing processors in the UNet: who shares it (`from_pipe`) gets other images.",
    "A patch is gone after the run, also after an exception.",
)
def pag_stays_after_an_exception() -> Found:
    from diffusers import StableDiffusionPAGPipeline

    pipeline = emoji()
    settings = {"guidance_scale": 1.0, "num_images_per_prompt": 2}
    plain = latents(pipeline, **settings)
    pag = StableDiffusionPAGPipeline(**pipeline.components, requires_safety_checker=False, pag_applied_layers=["mid"])
    pag.set_progress_bar_config(disable=True)
    failed = raised(lambda: latents(pag, guidance_scale=1.0, pag_scale=3.0, callback_on_step_end=_stop))
    after = latents(pipeline, **settings)
    first, second = gap(after[0], plain[0]), gap(after[1], plain[1])
    return Found(
        failed.startswith("Stop") and max(first, second) > 1e-3,
        f"two plain images afterwards differ by {first:.2g} and {second:.2g} from before (right: 0)",
    )


@case(
    "StableDiffusionSAGPipeline", "The same: its attention processor stays in the UNet after an exception.", "The same."
)
def sag_stays_after_an_exception() -> Found:
    from diffusers import StableDiffusionSAGPipeline

    pipeline = emoji()
    before = {type(p).__name__ for p in pipeline.unet.attn_processors.values()}
    sag = StableDiffusionSAGPipeline(**pipeline.components, requires_safety_checker=False)
    sag.set_progress_bar_config(disable=True)

    def stop(step: int, timestep: Any, x: Any) -> None:
        _stop(None, step, timestep, {})

    failed = raised(lambda: latents(sag, guidance_scale=3.0, callback=stop))
    left = {type(p).__name__ for p in pipeline.unet.attn_processors.values()} - before
    return Found(failed.startswith("Stop") and bool(left), f"left behind: {', '.join(sorted(left)) or 'nothing'}")


@case(
    "StableDiffusionPAGPipeline",
    "With `pag_adaptive_scale` the perturbed branch is evaluated also where its scale has come down to 0.",
    "A branch whose scale is the neutral one is not evaluated.",
)
def pag_pays_at_scale_zero() -> Found:
    from diffusers import StableDiffusionPAGPipeline

    pag = StableDiffusionPAGPipeline(**emoji().components, requires_safety_checker=False, pag_applied_layers=["mid"])
    pag.set_progress_bar_config(disable=True)
    with counted(pag.unet) as rows:
        latents(pag, guidance_scale=1.0, pag_scale=3.0, pag_adaptive_scale=0.01)
    zero = sum(pag._get_pag_scale(float(t)) == 0 for t in pag.scheduler.timesteps)
    paid = sum(rows) - len(rows)
    return Found(zero > 0 and paid == len(rows), f"scale 0 at {zero} of {len(rows)} steps, {paid} perturbed rows paid")


@case(
    "StableDiffusionPipeline and its kin",
    "`guidance_scale` from 0 to 1 is taken as 1: at 0 the image is the conditional one.",
    "Every scale is honoured: 0 is the unconditional prediction (with `parity=True`, as the pipelines do).",
)
def scales_below_one_are_one() -> Found:
    pipeline = emoji()
    at = {scale: latents(pipeline, guidance_scale=scale) for scale in (0.0, 0.5, 1.0)}
    low, half = gap(at[0.0], at[1.0]), gap(at[0.5], at[1.0])
    return Found(low == half == 0, f"latents at scale 0 and 0.5 differ by {low:g} and {half:g} from those at 1")


@case(
    "StableDiffusionPipeline.callback_on_step_end",
    "A new `negative_prompt_embeds` from the callback changes nothing: the rows were joined before the loop.",
    "A hook replaces `state.conditions`, which guidance reads at every stage.",
)
def callbacks_cannot_change_the_negative_prompt() -> Found:
    pipeline = emoji()

    def blank(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"negative_prompt_embeds": 0 * values["negative_prompt_embeds"] + 7}

    plain = latents(pipeline, guidance_scale=3.0)
    changed = latents(
        pipeline,
        guidance_scale=3.0,
        callback_on_step_end=blank,
        callback_on_step_end_tensor_inputs=["negative_prompt_embeds"],
    )
    away = gap(plain, changed)
    return Found(away == 0, f"latents differ by {away:g}")

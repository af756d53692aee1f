"""Claims about `diffusers.hooks`: the feature caches."""

from __future__ import annotations

import torch
from cases import Found, case, emoji, gap, hooks_on, latents, raised, transformer
from torch import Tensor


@case(
    "hooks.FirstBlockCache",
    "The cache decides on the mean over the batch: an image depends on its batch-mates.",
    "The feature cache decides image by image.",
)
def first_block_cache_decides_on_the_batch() -> Found:
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache
    from diffusers.hooks.hooks import CacheContext, _set_cache_context

    still, moving = torch.randn(2, 1, 4, 8, 8)
    steps = [(still, moving), (still + 0.05 * torch.randn_like(still), 3 * torch.randn_like(moving))]

    def second(mates: bool) -> Tensor:
        model = transformer()
        apply_first_block_cache(model, FirstBlockCacheConfig(threshold=0.2))
        _set_cache_context(model, CacheContext("cond"))
        for own, other in steps:
            x = torch.cat([own, other]) if mates else own
            labels = torch.arange(1, len(x) + 1)
            out = model(x, timestep=torch.full((len(x),), 500), class_labels=labels).sample
        return out[:1]

    x = steps[1][0]
    exact = transformer()(x, timestep=torch.tensor([500]), class_labels=torch.tensor([1])).sample
    alone, together = gap(second(False), exact), gap(second(True), exact)
    return Found(
        alone > 1e-3 and together < 1e-5,
        f"error of one image: {alone:.2g} alone (cached), {together:.1g} beside another that moves (computed)",
    )


@case(
    "hooks.TaylorSeerCache on UNet2DConditionModel",
    "It attaches to nothing, in silence: every evaluation is paid in full.",
    "A cache or patch that attaches to nothing is an error.",
)
def taylorseer_attaches_to_nothing() -> Found:
    from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

    pipeline = emoji()
    plain = latents(pipeline)
    error = raised(lambda: apply_taylorseer_cache(pipeline.unet, TaylorSeerCacheConfig(cache_interval=3)))
    count, away = hooks_on(pipeline.unet), gap(latents(pipeline), plain)
    return Found(
        not error and count == 0 and away == 0,
        error or f"{count} hooks; the latents differ by {away:g} from those without a cache",
    )


@case("hooks.MagCache on UNet2DConditionModel", "It attaches to nothing, with a line in the log only.", "The same.")
def magcache_attaches_to_nothing() -> Found:
    from diffusers.hooks import MagCacheConfig, apply_mag_cache

    pipeline = emoji()
    plain = latents(pipeline)
    config = MagCacheConfig(mag_ratios=torch.ones(6), num_inference_steps=6)
    error = raised(lambda: apply_mag_cache(pipeline.unet, config))
    count, away = hooks_on(pipeline.unet), gap(latents(pipeline), plain)
    return Found(
        not error and count == 0 and away == 0,
        error or f"{count} hooks; the latents differ by {away:g} from those without a cache",
    )


@case(
    "hooks.FirstBlockCache on UNet2DConditionModel",
    "It ends in an error that does not say why.",
    "What a model does not have is named, with what it has.",
)
def first_block_cache_on_a_unet() -> Found:
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    error = raised(lambda: apply_first_block_cache(emoji().unet, FirstBlockCacheConfig()))
    return Found(error.startswith("IndexError"), f"`{error}`" if error else "no error")


@case(
    "hooks.PyramidAttentionBroadcast on UNet2DConditionModel",
    "The cache survives the run: an image depends on the one that was made before it.",
    "What a run keeps ends with it: A, B, A gives A twice, bit for bit.",
)
def pyramid_attention_broadcast_leaks() -> Found:
    from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

    def cached() -> object:
        pipeline = emoji()
        config = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=3,
            cross_attention_block_skip_range=3,
            spatial_attention_timestep_skip_range=(-1, 1001),
            cross_attention_timestep_skip_range=(-1, 1001),
            spatial_attention_block_identifiers=("attentions",),
            cross_attention_block_identifiers=("attentions",),
            current_timestep_callback=lambda: int(pipeline.scheduler.timesteps[0]),
        )
        apply_pyramid_attention_broadcast(pipeline.unet, config)
        return pipeline

    steps, used = 7, cached()
    latents(used, seed=1, steps=steps, prompt="a red heart")
    away = gap(latents(used, steps=steps), latents(cached(), steps=steps))
    return Found(away > 1e-3, f"the same seed after another run: latents differ by up to {away:.2g} (right: 0)")

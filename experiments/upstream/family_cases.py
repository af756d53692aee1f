"""Claims about the pipelines and networks of flow transformers."""

from __future__ import annotations

from typing import Any

import torch
from cases import Found, case, gap
from torch import Tensor, nn

_SIZES: dict[str, Any] = {
    "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (2, 2, 4),
}  # fmt: skip


def _lively(network: Any) -> Any:
    """Every weight drawn anew: fresh networks have zero gates."""
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.3)
    return network.eval()


def _flux() -> tuple[Any, dict[str, Any]]:
    """A small Flux pipeline without its parts for text and pixels, and what it is called with."""
    import diffusers

    network = _lively(diffusers.FluxTransformer2DModel(**_SIZES, pooled_projection_dim=16))
    pipeline = diffusers.FluxPipeline(
        transformer=network, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=None,
        text_encoder_2=None, tokenizer=None, tokenizer_2=None,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    told = {"prompt_embeds": torch.randn(1, 4, 16), "pooled_prompt_embeds": torch.randn(1, 16)}
    return pipeline, {**told, "height": 64, "width": 64, "num_inference_steps": 4, "output_type": "latent"}


@case(
    "ChromaTransformer2DModel",
    "Its mask of 0 and 1 is added to the logarithm of attention, and masks nothing: the picture depends on the padding.",
    "Padding is left out but for the one token that the model was trained with (with `parity=True` as in the pipeline).",
)
def chroma_sees_its_padding() -> Found:
    import diffusers

    network = _lively(
        diffusers.ChromaTransformer2DModel(
            **_SIZES, approximator_hidden_dim=16, approximator_layers=1, approximator_num_channels=16
        )
    )
    text, picture = torch.randn(1, 8, 16), torch.randn(1, 16, 16)
    other = text.clone()
    other[:, 4:] = torch.randn(1, 4, 16)
    mask = torch.ones(1, 24)
    mask[:, 4:8] = 0

    def predicted(embeds: Tensor) -> Tensor:
        out: Tensor = network(
            hidden_states=picture, timestep=torch.tensor([0.5]), encoder_hidden_states=embeds, txt_ids=torch.zeros(8, 3),
            img_ids=torch.zeros(16, 3), attention_mask=mask, return_dict=False,
        )[0]  # fmt: skip
        return out

    one, two = predicted(text), predicted(other)
    moved = float((one - two).abs().max() / one.std())
    return Found(moved > 1e-3, f"other padding moves the prediction by {moved:.2g} of its spread (right: 0)")


@case(
    "FluxPipeline, QwenImagePipeline",
    "`true_cfg_scale` without a negative prompt is ignored.",
    "Without one guidance leads away from the empty sentence; with `parity=True` it is off as in the pipeline, with a warning.",
)
def flux_ignores_its_scale() -> Found:
    pipeline, told = _flux()

    def made(scale: float) -> Tensor:
        latents: Tensor = pipeline(true_cfg_scale=scale, generator=torch.Generator().manual_seed(0), **told).images
        return latents

    apart = gap(made(1.0), made(8.0))
    return Found(apart == 0, f"latents at scale 8 differ by {apart:.2g} from those at 1")

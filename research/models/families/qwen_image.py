"""Qwen-Image (Wu et al., arXiv:2508.02324)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from research.models.families.packed import PackedModel
from research.models.families.texts import Texts
from research.models.geometry import LatentGeometry
from research.models.memory import device_of
from research.sampling.interfaces import Condition

_TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships "
    "of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
_DROPPED = 34  # tokens of the template before the sentence
_LONGEST = 1024


class QwenImageModel(PackedModel):
    """A vision-language model reads the text, as long as it is; latents come from a VAE of videos of one frame."""

    family = "qwen-image"
    guided_by_negative_alone = True

    @classmethod
    def geometry_of(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> LatentGeometry:
        return LatentGeometry(
            in_channels=network.get("in_channels", 64) // 4,
            latent_channels=vae.get("z_dim", 16),
            sample_size=(128, 128),
            vae_factor=2 ** len(vae.get("temperal_downsample", (False, True, True))),
            patch=2,
        )

    def tokenizers(self) -> Sequence[tuple[Any, int]]:
        return [(self.parts["tokenizer"], self.max_length)]

    @property
    def text(self) -> Texts:
        return Texts(self.tokenizers(), self.weights_sha256, closing=0)

    def encode_texts(self, texts: Sequence[str], *, negative: bool) -> Condition:
        encoder = self.parts["text_encoder"]
        told = [_TEMPLATE.format(text) for text in texts]
        found = self.parts["tokenizer"](
            told, max_length=_LONGEST + _DROPPED, padding=True, truncation=True, return_tensors="pt"
        ).to(device_of(encoder))
        out = encoder(input_ids=found.input_ids, attention_mask=found.attention_mask, output_hidden_states=True)
        pairs = zip(out.hidden_states[-1], found.attention_mask.bool(), strict=True)
        rows = [states[seen][_DROPPED:] for states, seen in pairs]
        lengths = torch.tensor([len(row) for row in rows], device=device_of(encoder))
        embeds = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)[:, : self.max_length]
        mask = (torch.arange(embeds.shape[1], device=device_of(encoder)) < lengths[:, None]).long()
        return Condition(embeds=embeds, mask=None if bool(mask.all()) else mask)

    def of_tokens(
        self, tokens: Tensor, time: Tensor, told: Condition, grid: tuple[int, int], *, parity: bool
    ) -> Tensor:
        return self.network(
            hidden_states=tokens,
            timestep=time,
            guidance=None,
            encoder_hidden_states_mask=told.mask,
            encoder_hidden_states=told.embeds,
            img_shapes=[[(1, *grid)]] * len(tokens),
            attention_kwargs={},
            return_dict=False,
        )[0]

    # -- its VAE takes and makes videos [N, C, frames, H, W], and has a mean and a spread for each channel

    def _levels(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and inverse spread [1, C, 1, 1]."""
        config = self.vae.config
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
        return mean.to(like.device, like.dtype), 1.0 / std.to(like.device, like.dtype)

    def normalised(self, sample: Tensor) -> Tensor:
        mean, inverse = self._levels(sample)
        return (sample - mean) * inverse

    def denormalised(self, latents: Tensor) -> Tensor:
        mean, inverse = self._levels(latents)
        return latents / inverse + mean

    def posterior(self, pixels: Tensor) -> Any:
        found = super().posterior(pixels.unsqueeze(2))
        return type(found)(found.parameters[:, :, 0])

    def decode_pixels(self, latents: Tensor) -> Tensor:
        frames = self.denormalised(latents.to(self.vae.dtype)).unsqueeze(2)
        return self.vae.decode(frames, return_dict=False)[0][:, :, 0]

"""Hooks that come with the project: inpainting, changes of latents and prompts, caches, records, previews."""

from research.hooks.cads import CADS
from research.hooks.differential import Differential
from research.hooks.dynamic_prompt import DynamicPrompt
from research.hooks.extra_channels import ExtraChannels
from research.hooks.feature_cache import FeatureCache
from research.hooks.freeu import FreeU
from research.hooks.latent_transform import LatentTransform
from research.hooks.mask_composite import MaskComposite
from research.hooks.nan_guard import NanGuard
from research.hooks.preview import Preview
from research.hooks.record import Record
from research.hooks.restart import RePaint, Restart
from research.hooks.transforms import Blur, Flip, NoiseReinjection, Shift

__all__ = [
    "CADS",
    "Blur",
    "Differential",
    "DynamicPrompt",
    "ExtraChannels",
    "FeatureCache",
    "Flip",
    "FreeU",
    "LatentTransform",
    "MaskComposite",
    "NanGuard",
    "NoiseReinjection",
    "Preview",
    "RePaint",
    "Record",
    "Restart",
    "Shift",
]

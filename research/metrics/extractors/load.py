"""The registry of feature extractors: `load_features` by name."""

from __future__ import annotations

from functools import lru_cache

import torch

from research.clip import fetch
from research.metrics.extractors.base import Features
from research.metrics.extractors.clip import load_clip_features
from research.metrics.extractors.efficientnet import EfficientNetFeatures
from research.metrics.extractors.find import EFFICIENTNET, INCEPTION, INCEPTION_ANTIALIASED, find_features
from research.metrics.extractors.inception import InceptionFeatures
from research.metrics.extractors.vision import is_clip, load_vision


def load_features(
    name_or_path: str, *, device: str | torch.device = "cpu", key: str = "metrics.fid.features"
) -> Features:
    """A feature extractor: uint8 images ``[N, 3, H, W]`` to float features ``[N, D]``.

    Args:
        name_or_path: a zoo name, a directory or a hub id of a CLIPModel (projected embedding) or of a vision transformer such as
            DINOv2 (class token); ``inception``, ``inception-antialiased`` or ``efficientnet``, which come with extras. Local ones
            need no network.
        device: where the network runs; features come back on the images' device.
        key: the config key named in errors.

    Returns:
        A module in eval mode with ``num_features`` (int) and ``provenance`` (dict), see `Features`.

    Raises:
        ConfigError: not found, not readable, or an extra is not installed.
    """
    directory = find_features(name_or_path, key)
    if name_or_path in (INCEPTION, INCEPTION_ANTIALIASED):
        return load_inception(str(device), name_or_path)
    if name_or_path == EFFICIENTNET:
        return load_efficientnet(str(device))
    local = fetch(name_or_path, key) if directory is None else directory.resolve()
    if is_clip(local, key):
        return load_clip_features(name_or_path, device=str(device), key=key)
    # the folder's own name, since records must not carry paths of the machine
    return load_vision(local, name_or_path if directory is None else local.name, str(device), key)


# one module for each network, so that what is cached by it (a directory's statistics) is found again
@lru_cache(maxsize=2)
def load_inception(device: str, name: str = INCEPTION) -> InceptionFeatures:
    """The features of FID in papers; the extra is installed."""
    return InceptionFeatures(device, name).eval()


@lru_cache(maxsize=2)
def load_efficientnet(device: str) -> EfficientNetFeatures:
    """Features of an ImageNet classifier, with its class probabilities; the extra is installed."""
    return EfficientNetFeatures(device).eval()

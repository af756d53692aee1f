"""Features of a job's images, saved in a small file: comparisons resample them, and need not look at the images again.

``features/NAME.safetensors`` in a job's folder holds ``features`` [N, D] in half precision, in the order of the images, and says
in its metadata what made them. ``metrics_info.METRIC.features_file`` names it, ``features_sha256`` vouches for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import ConfigError
from research.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "features"
LARGEST = 64 << 20  # bytes of a file; 16,384 images of 2048 features


@dataclass(frozen=True, eq=False)
class SavedFeatures:
    """Features of a job's images.

    Attributes:
        vectors: [N, D], one row an image, in the order of the job's images.
        provenance: of the extractor, see `research.metrics.extractors.base.Provenance`.
        config_sha256: of what the extractor is besides its weights, see `research.metrics.extractors.base.Features`.
    """

    vectors: Tensor
    provenance: Mapping[str, Any]
    config_sha256: str = ""

    @property
    def name(self) -> str:
        """The extractor's name, fit for a file, with the beginning of the hash of all that its vectors depend on."""
        plain = re.sub(r"[^\w.-]+", "_", str(self.provenance.get("name", "features"))).strip("._") or "features"
        made_by = {name: value for name, value in self.provenance.items() if name != "name"}
        told = json.dumps([made_by, self.config_sha256], sort_keys=True, default=str).encode()
        return f"{plain[:60]}-{hashlib.sha256(told).hexdigest()[:8]}"


def are_saved(count: int, dimension: int) -> bool:
    """Whether so many vectors are saved at all."""
    return count * dimension * 2 <= LARGEST


def save_features(folder: Path, features: SavedFeatures) -> dict[str, str]:
    """Write features into a job's folder; metrics in one feature space share a file: what is there already and equal stays.

    Returns:
        ``features_file`` and ``features_sha256``, for the metric's ``info``.

    Raises:
        OSError: the disk does not take it.
    """
    content = _content(features)
    file = folder / FOLDER / f"{features.name}.safetensors"
    if not file.is_file() or file.read_bytes() != content:
        write_atomic(file, content)
    return {
        "features_file": file.relative_to(folder).as_posix(),
        "features_sha256": hashlib.sha256(content).hexdigest(),
    }


def read_features(folder: Path, info: Mapping[str, Any]) -> SavedFeatures | None:
    """The features that a metric's ``info`` names, in float32; None if it names none.

    Args:
        folder: the job's.
        info: ``metrics_info.METRIC`` of its record.

    Raises:
        ConfigError: the file is gone, or another than the record vouches for.
    """
    name = info.get("features_file")
    if not name:
        return None
    from safetensors import SafetensorError
    from safetensors.torch import load

    file = folder / str(name)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror or error}); score the job again.") from error
    if hashlib.sha256(content).hexdigest() != info.get("features_sha256"):
        raise ConfigError(f"{file}: is not the file that the job's record says (SHA-256); score the job again.")
    try:
        vectors = load(content)["features"].float()
        length = int.from_bytes(content[:8], "little")
        provenance = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["provenance"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: holds no features of images; score the job again.") from error
    return SavedFeatures(vectors, provenance)


def _content(features: SavedFeatures) -> bytes:
    import torch
    from safetensors.torch import save

    half = features.vectors.to(torch.float16)
    if not torch.isfinite(half).all():  # beyond 65504, which no extractor here gives
        half = features.vectors.float()
    return save(
        {"features": half.contiguous().cpu()},
        {"provenance": json.dumps(features.provenance, sort_keys=True, ensure_ascii=False)},
    )

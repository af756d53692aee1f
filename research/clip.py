"""CLIP models (arXiv:2103.00020): pictures and sentences as vectors of one space, for metrics and for losses that guide.

A model is loaded once a process and always in float32; local names never touch the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.caches import MIB, Cache
from research.errors import ConfigError, nearest
from research.files import stamp
from research.hashing import sha256_files
from research.hub_cache import cached_snapshot, hub_id, repository_folder
from research.lazy import gc_paused
from research.zoo import ZOO_DIR, zoo_path

if TYPE_CHECKING:
    from torch import Tensor

    from research.image_tensors import Preprocess

PROMPTS_AT_ONCE = 64
_NEEDED = ("preprocessor_config.json",)
# of the root: what lies in folders (of ONNX, of parts of a pipeline) is not read
_HUB_FILES = ["*.json", "*.txt", "*.safetensors"]
_IN_FOLDERS = ["*/*"]
_models = Cache("metric models", 8192 * MIB)
_lengths = Cache("metric text lengths", 16 * MIB, 16384)
_read_texts = Cache("metric texts", 64 * MIB)


@dataclass(eq=False)
class Clip:
    """A CLIP model with its tokenizer and image preprocessing."""

    name: str
    weights_sha256: str
    model: Any  # a transformers CLIPModel
    tokenizer: Any
    preprocess: Preprocess
    device: str
    files_sha256: str = ""  # of its configs and its tokenizer, which its weights do not say

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.model.state_dict().values())

    @property
    def _texts_by(self) -> tuple[str, str]:
        """What the vector of a sentence depends on, besides the sentence and the device."""
        return self.weights_sha256, self.files_sha256

    @property
    def dimension(self) -> int:
        return int(self.model.config.projection_dim)

    @property
    def logit_scale(self) -> Tensor:
        """What cosines are multiplied by to become logits, a number as a tensor []."""
        scale: Tensor = self.model.logit_scale.exp()
        return scale

    @property
    def max_tokens(self) -> int:
        """Tokens of a prompt that the text tower sees, start and end token included."""
        limit = int(self.model.config.text_config.max_position_embeddings)
        return min(limit, int(self.tokenizer.model_max_length))

    def embed_images(self, images: Tensor) -> Tensor:
        """Projected, unnormalised embeddings [N, D] of images [N, 3, H, W], uint8 or floats in [0, 1]; on the model's device.

        Raises:
            ConfigError: images of another type or range.
        """
        import torch

        from research.image_tensors import to_uint8

        with torch.no_grad():
            return self.embed_pixels(self.preprocess(to_uint8(images)).to(self.device))

    def embed_pixels(self, prepared: Tensor) -> Tensor:
        """Projected, unnormalised embeddings [N, D] of pixels [N, 3, h, w] that went through ``preprocess``; differentiable."""
        return _pooled(self.model.get_image_features(pixel_values=prepared))

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Projected, unnormalised embeddings [N, D] on the CPU; each different prompt is encoded once a process.

        Long prompts are cut to `max_tokens` with their end token kept, since CLIP reads the sentence off it.
        """
        import torch

        found = {p: _read_texts.peek((*self._texts_by, self.device, p)) for p in dict.fromkeys(prompts)}
        new = [p for p, vector in found.items() if vector is None]
        for start in range(0, len(new), PROMPTS_AT_ONCE):
            part = new[start : start + PROMPTS_AT_ONCE]
            tokens = self.tokenizer(
                part, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            ).to(self.device)
            with torch.no_grad():
                output = self.model.get_text_features(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
                )
            for prompt, vector in zip(part, _pooled(output).cpu(), strict=True):
                found[prompt] = _read_texts.put((*self._texts_by, self.device, prompt), vector.clone(), vector.nbytes)
        return torch.stack([found[p] for p in prompts])

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        """The different prompts that are too long for the text tower."""
        return [p for p in dict.fromkeys(prompts) if self._tokens(p) > self.max_tokens]

    def _tokens(self, prompt: str) -> int:
        return _lengths.get(
            (*self._texts_by, prompt), lambda: len(self.tokenizer(prompt, verbose=False)["input_ids"]), 2 * len(prompt)
        )


def find_clip(name: str, key: str) -> Path | None:
    """The directory of a CLIP model, or None for a hub id, which only the hub can tell more about. Needs no torch.

    Args:
        name: a zoo name, a directory or a hub id.
        key: the config key it came from, for the error.

    Raises:
        ConfigError: nothing is there, or what is there is no CLIP model.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{key}: found {name!r}; accepted is a zoo name, a directory or a hub id.")
    directory = zoo_path(name) or Path(name).expanduser()
    if (repository := repository_folder(directory)) is not None:
        directory = _snapshot(repository) or directory
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise ConfigError(f"{key}: {name!r} is no CLIPModel: it has no config.json.{_accepted(name)}")
        return directory
    if hub_id(name) is not None:
        return None
    raise ConfigError(f"{key}: {name!r} does not exist.{_accepted(name)}")


def load_clip(name: str, *, device: str = "cpu", key: str = "metrics.clip_score.model") -> Clip:
    """A CLIP model, read once a process for each name and device.

    Raises:
        ConfigError: not found, not a CLIP model, without safetensors weights, or the hub cannot be reached.
    """
    directory = find_clip(name, key)
    local = fetch(name, key) if directory is None else directory.resolve()
    # the folder's own name, since records must not carry paths of the machine
    known_as = name if directory is None else local.name
    with gc_paused():
        return _models.get(
            (local, known_as, str(device), stamp(local)),
            lambda: _read(local, known_as, str(device), key),
            lambda clip: clip.nbytes,
        )


@lru_cache(maxsize=8)
def fetch(name: str, key: str) -> Path:
    """The directory of a model of the hub, fetched if need be; safetensors weights only. Without a network it is what the cache
    holds of it, if the config and the weights are there, whatever else the repository lists.

    Args:
        name: "owner/name", or "owner/name@revision".

    Raises:
        ConfigError: it cannot be fetched.
    """
    from huggingface_hub import constants, snapshot_download

    asked = hub_id(name)
    assert asked is not None
    cached = cached_snapshot(asked, ("config.json",))
    if cached is not None and constants.HF_HUB_OFFLINE:
        missing = [file for file in _NEEDED if not (cached / file).is_file()]
        missing += [] if _weights(cached) else ["model.safetensors"]
        if not missing:
            return cached
        raise ConfigError(
            f"{key}: {name!r} lacks {', '.join(missing)} in the hub's cache, and offline mode is on; accepted are an embedded "
            "model such as 'emoji-eval', a directory, or a whole one in the cache."
        )
    try:
        return Path(
            snapshot_download(
                asked.name,
                revision=asked.revision,
                allow_patterns=_HUB_FILES,
                ignore_patterns=_IN_FOLDERS,
                etag_timeout=10,
            )
        )
    except Exception as error:  # offline, unknown, gated, interrupted: all are one thing to the user
        if cached is not None and isinstance(error, OSError) and _weights(cached):  # the hub cannot be reached
            return cached
        raise ConfigError(
            f"{key}: {name!r} cannot be fetched from the hub ({type(error).__name__}). "
            "Without a network, use an embedded model such as 'emoji-eval', or a directory."
        ) from error


def transformers_weights(directory: Path, name: str, key: str) -> list[Path]:
    """The safetensors files of a model's directory; other files beside them (half-precision variants) are not read.

    Raises:
        ConfigError: there is none.
    """
    if weights := _weights(directory):
        return weights
    raise ConfigError(f"{key}: {name} has no safetensors weights; pickled weights are not read, as they can run code.")


def _weights(directory: Path) -> list[Path]:
    """As transformers prefers them: one file, else shards."""
    single = directory / "model.safetensors"
    return [single] if single.is_file() else sorted(directory.glob("model-*-of-*.safetensors"))


def _snapshot(repository: Path) -> Path | None:
    """The snapshot of the main branch in the folder that the hub's cache keeps of a repository, or the only one."""
    ref, kept = repository / "refs" / "main", sorted((repository / "snapshots").iterdir())
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""
    named = [each for each in kept if each.name == commit] or kept
    return named[0] if len(named) == 1 else None


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """transformers loads without a bar."""
    # a bar for a model that loads in milliseconds would tear the runner's own
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _read(directory: Path, name: str, device: str, key: str) -> Clip:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    from research.image_tensors import Preprocess

    weights = transformers_weights(directory, name, key)
    try:
        config = CLIPConfig.from_pretrained(directory, local_files_only=True)
        if config.model_type != "clip":
            raise ValueError(f"its model_type is {config.model_type!r}")
        with no_progress_bar():
            model = CLIPModel.from_pretrained(directory, config=config, local_files_only=True, use_safetensors=True)
        tokenizer = CLIPTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # transformers and safetensors raise a dozen kinds for broken folders
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{key}: {name} cannot be read as a CLIPModel: {line}") from error
    model = model.float().to(device).eval().requires_grad_(False)
    preprocess = Preprocess.from_config(directory / "preprocessor_config.json")
    told = sha256_files(file for file in directory.iterdir() if file.suffix in (".json", ".txt", ".model"))
    return Clip(name, sha256_files(weights), model, tokenizer, preprocess, device, told)


def _pooled(output: Any) -> Tensor:
    # transformers 5 wraps the projected embedding in an output object; transformers 4 returns it bare
    found: Tensor = getattr(output, "pooler_output", output)
    return found


def _accepted(name: str) -> str:
    names = sorted(p.parent.name for p in ZOO_DIR.glob("*/config.json"))
    return (
        f"{nearest(name, names)} Accepted: an evaluation model of the zoo ({', '.join(names) or 'none here'}), "
        "a directory, or a hub id such as 'openai/clip-vit-large-patch14'."
    )

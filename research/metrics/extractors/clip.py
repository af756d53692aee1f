"""CLIP models for scoring, loaded once a process and always in float32."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.caches import MIB, Cache
from research.errors import ConfigError
from research.hashing import sha256_files
from research.lazy import uncollected
from research.metrics.extractors.find import locate_clip
from research.metrics.feature_checkpoint import remembered

if TYPE_CHECKING:
    from torch import Tensor

    from research.metrics.images import Preprocess

_HUB_FILES = ["*.json", "*.txt", "*.safetensors"]
PROMPTS_AT_ONCE = 64
_models = Cache("metric models", 8192 * MIB)
_lengths = Cache("metric text lengths", 16 * MIB, 16384)
seen_images = Cache("image features", 64 * MIB)
_read_texts = Cache("metric texts", 64 * MIB)


@dataclass(eq=False)
class Clip:
    """A CLIP model with its tokenizer and image preprocessing."""

    name: str
    weights_sha256: str
    model: Any
    tokenizer: Any
    preprocess: Preprocess
    device: str

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.model.state_dict().values())

    @property
    def dimension(self) -> int:
        return int(self.model.config.projection_dim)

    @property
    def max_tokens(self) -> int:
        """Tokens of a prompt that the text tower sees, start and end token included."""
        limit = int(self.model.config.text_config.max_position_embeddings)
        return min(limit, int(self.tokenizer.model_max_length))

    def embed_images(self, images: Tensor) -> Tensor:
        """Projected, unnormalised embeddings ``[N, D]`` of images ``[N, 3, H, W]``, on the images' device.

        Those of a batch are kept, as several metrics look at the same images.

        Raises:
            ConfigError: images that are neither uint8 nor float in [0, 1].
        """
        import torch

        from research.metrics.images import to_uint8

        whole = to_uint8(images).contiguous()

        def embed() -> Tensor:
            pixels = self.preprocess(whole).to(self.device)
            with torch.no_grad():
                return _pooled(self.model.get_image_features(pixel_values=pixels))

        batch = hashlib.sha256(whole.cpu().numpy().tobytes()).digest()
        key = self.weights_sha256, self.preprocess, self.device, tuple(images.shape), batch
        return seen_images.get(key, lambda: remembered(key, embed), lambda made: made.nbytes).to(images.device)

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Projected, unnormalised embeddings ``[N, D]`` on the CPU; each different prompt is encoded once.

        Long prompts are cut to `max_tokens` with their end token kept, since CLIP reads the sentence off it.
        """
        import torch

        found = {p: _read_texts.peek((self.weights_sha256, self.device, p)) for p in dict.fromkeys(prompts)}
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
                found[prompt] = _read_texts.put(
                    (self.weights_sha256, self.device, prompt), vector.clone(), vector.nbytes
                )
        return torch.stack([found[p] for p in prompts])

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        """The different prompts that are too long for the text tower."""
        return [p for p in dict.fromkeys(prompts) if self._tokens(p) > self.max_tokens]

    def _tokens(self, prompt: str) -> int:
        return _lengths.get(
            (self.weights_sha256, prompt),
            lambda: len(self.tokenizer(prompt, verbose=False)["input_ids"]),
            2 * len(prompt),
        )


def load_clip(name: str, *, device: str = "cpu", key: str = "metrics.clip_score.model") -> Clip:
    """A CLIP model, read once a process for each name and device. Local names never touch the network.

    Raises:
        ConfigError: not found, not a CLIP model, without safetensors weights, or the hub cannot be reached.
    """
    directory = locate_clip(name, key)
    if directory is None:
        return _load(fetch(name, key), name, str(device), key)
    # the folder's own name, since records must not carry paths of the machine
    return _load(directory.resolve(), directory.resolve().name, str(device), key)


def _load(directory: Path, name: str, device: str, key: str) -> Clip:
    with uncollected():
        return _models.get(
            (directory, name, device), lambda: _read(directory, name, device, key), lambda clip: clip.nbytes
        )


def _read(directory: Path, name: str, device: str, key: str) -> Clip:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    from research.metrics.images import Preprocess

    # other files beside them (half-precision variants) are not what from_pretrained reads
    single = directory / "model.safetensors"
    weights = [single] if single.is_file() else sorted(directory.glob("model-*-of-*.safetensors"))
    if not weights:
        raise ConfigError(
            f"{key}: {name} has no safetensors weights; pickled weights are not read, as they can run code."
        )
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
    return Clip(name, sha256_files(weights), model, tokenizer, preprocess, device)


@lru_cache(maxsize=8)
def fetch(hub_id: str, key: str) -> Path:
    """The directory of a model of the hub, fetched if it is not in the cache; safetensors weights only.

    Raises:
        ConfigError: it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except Exception as error:  # offline, unknown, gated, interrupted: all are one thing to the user
        raise ConfigError(
            f"{key}: {hub_id!r} cannot be fetched from the hub ({type(error).__name__}). "
            "Without a network, use an embedded model such as 'emoji-eval', or a directory."
        ) from error


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


def _pooled(output: Any) -> Tensor:
    # transformers 5 wraps the projected embedding in an output object; transformers 4 returns it bare
    return output if not hasattr(output, "pooler_output") else output.pooler_output

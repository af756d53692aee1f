"""What a CLIP model says of an image: a loss, and a classifier over sentences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from research.arguments import Recorded
from research.clip import Clip, find_clip, load_clip
from research.errors import ConfigError
from research.sampling.interfaces import Batch


class _Clip:
    """A CLIP model that a gradient flows through. It is the one that scores, seen through a differentiable resize."""

    def __init__(self, model: str, key: str):
        self.model, self.key = model, f"{key}.model"
        find_clip(model, self.key)
        self._loaded: Clip | None = None
        self._texts: dict[tuple[tuple[str, ...], torch.device], Tensor] = {}  # the last, on its device

    def on(self, device: torch.device) -> Clip:
        if self._loaded is None or self._loaded.device != str(device):
            self._loaded = load_clip(self.model, device=str(device), key=self.key)
        return self._loaded

    def images(self, pixels: Tensor) -> Tensor:
        """Embeddings [N, D] of length 1 of pixels [N, 3, H, W] in about [-1, 1]."""
        clip = self.on(pixels.device)
        prepared = clip.preprocess.differentiable((pixels.float() / 2 + 0.5).clamp(0, 1))
        return functional.normalize(clip.embed_pixels(prepared), dim=1)

    def texts(self, sentences: Sequence[str], device: torch.device) -> Tensor:
        """Embeddings [N, D] of length 1."""
        key = tuple(sentences), torch.device(device)
        if key not in self._texts:
            self._texts = {key: functional.normalize(self.on(device).embed_texts(sentences).to(device), dim=1)}
        return self._texts[key]


class ClipLoss(Recorded):
    """``1 - cos(image, sentence)`` by a CLIP model (arXiv:2103.00020): from 0 to 2.

    A model that leads the images is no judge of them: its CLIP score is then high whatever they look like.

    Args:
        prompt: a sentence for all images, a list with one an image, or None for the prompts of the job.
        model: a zoo name, a directory or a hub id of a CLIPModel.

    Raises:
        ConfigError: no such model, or not as many sentences as images.
    """

    def __init__(self, prompt: str | Sequence[str] | None = None, model: str = "emoji-eval"):
        texts = [prompt] if isinstance(prompt, str) else prompt
        if texts is not None and (not texts or not all(isinstance(text, str) for text in texts)):
            raise ConfigError(f"guidance.loss.prompt: found {prompt!r}; accepted is a sentence, a list, or null.")
        self.prompt = prompt
        self.clip = _Clip(model, "guidance.loss")
        self._texts: list[str] | None = None

    def start(self, run: Batch) -> None:
        given = run.task.prompts if self.prompt is None else self.prompt
        if not given:
            raise ConfigError("guidance.loss.prompt: found null, and the job has no prompts; accepted is a sentence.")
        if not isinstance(given, str) and len(given) != run.n_images:
            raise ConfigError(
                f"guidance.loss.prompt: found {len(given)} sentences for {run.n_images} images; accepted is one for all, or one "
                "an image."
            )
        self._texts = [given if isinstance(given, str) else given[row] for row in run.rows]
        self.clip.texts(self._texts, run.model.device)  # read before the loop

    def __call__(self, pixels: Tensor) -> Tensor:
        """[N] of pixels [N, 3, H, W] in [-1, 1]."""
        texts = self._texts or ([self.prompt] if isinstance(self.prompt, str) else list(self.prompt or []))
        return 1 - (self.clip.images(pixels) * self.clip.texts(texts, pixels.device)).sum(1)


class ClipClassifier(Recorded):
    """A zero-shot classifier: which of several sentences an image is of, by a CLIP model (arXiv:2103.00020, section 3.1).

    Args:
        prompts: a sentence a class, at least two.
        model: a zoo name, a directory or a hub id of a CLIPModel.

    Raises:
        ConfigError: no such model, or fewer sentences.
    """

    def __init__(self, prompts: Sequence[str], model: str = "emoji-eval"):
        if isinstance(prompts, str) or len(prompts) < 2 or not all(isinstance(text, str) for text in prompts):
            raise ConfigError(
                f"guidance.classifier.prompts: found {prompts!r}; accepted is a list of at least two sentences."
            )
        self.prompts = list(prompts)
        self.clip = _Clip(model, "guidance.classifier")

    def start(self, run: Batch) -> None:
        self.clip.texts(self.prompts, run.model.device)  # read before the loop

    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits [N, K] of pixels [N, 3, H, W] in [-1, 1]: cosines times the model's own scale."""
        cosines = self.clip.images(pixels) @ self.clip.texts(self.prompts, pixels.device).T
        return cosines * self.clip.on(pixels.device).logit_scale

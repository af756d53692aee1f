"""Inception Score: how sure a classifier is of each image, and how many classes it finds among all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from research.checks import check_whole_number
from research.errors import ConfigError
from research.metrics.base import Metric, MetricResult, check_count, comparable, library_versions
from research.metrics.extractors.find import EFFICIENTNET, INCEPTION, find_features

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    Classifier = Callable[[Tensor], Tensor]

DEFINITION = "Inception Score (arXiv:1606.03498): exp of the mean KL(p(y|x) || p(y))"


class InceptionScore(Metric):
    """``inception_score``: the exponential of the mean divergence between what a classifier says of an image and of all images.

    It lies between 1 and the number of classes, knows no real images, and is biased downward at small counts.

    Args:
        classifier: ``inception`` (as papers have it) or ``efficientnet``, which come with extras, or a zoo name, a directory
            or a hub id of a CLIPModel, which tells `labels` apart.
        labels: the classes as sentences, for a CLIPModel.
        splits: parts to score apart, drawn at random by a fixed seed, as images stand prompt by prompt; the value is their mean
            and ``inception_score_std`` their deviation. Papers have 10 with 50,000 images; 1 is less biased for few.
        batch_size: images at a time.
    """

    name = "inception_score"

    def __init__(
        self, classifier: str = INCEPTION, labels: Sequence[str] | None = None, splits: int = 1, batch_size: int = 64
    ) -> None:
        self.classifier, self.labels, self.splits, self.batch_size = classifier, labels, splits, batch_size

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for a missing extra, a CLIPModel without labels, or fewer images than parts."""
        key = f"metrics.{self.name}"
        check_whole_number(f"{key}.batch_size", self.batch_size, least=1)
        check_whole_number(f"{key}.splits", self.splits, least=1)
        find_features(self.classifier, f"{key}.classifier")
        known = self.classifier in (INCEPTION, EFFICIENTNET)
        if known and self.labels is not None:
            raise ConfigError(f"{key}.labels: goes with a CLIPModel; {self.classifier!r} has classes of its own.")
        texts = self.labels if isinstance(self.labels, list | tuple) else ()
        if not known and (len(set(texts)) < 2 or not all(isinstance(text, str) and text for text in texts)):
            raise ConfigError(
                f"{key}.labels: found {self.labels!r}; accepted with a CLIPModel is a list of two sentences or more."
            )
        check_count(key, n_images, 2 * self.splits)

    def compute(
        self, images: Sequence[Image.Image], prompts: Sequence[str] = (), *, device: str | torch.device = "cpu"
    ) -> MetricResult:
        """Scores images as a set; prompts play no part."""
        import torch

        from research.image_tensors import batches

        self.check(n_images=len(images))
        probabilities, made_with = self._classifier(str(device))
        found = torch.cat([probabilities(batch).double().cpu() for batch in batches(images, self.batch_size)])
        if self.splits > 1:
            found = found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))]
        parts = [inception_score(part) for part in found.tensor_split(self.splits)]
        spread = torch.tensor(parts, dtype=torch.float64)
        values = {self.name: float(spread.mean())}
        if self.splits > 1:
            values[f"{self.name}_std"] = float(spread.std(unbiased=False))
        count, classes = len(images), found.shape[1]
        warnings = []
        if count // self.splits < classes:
            warnings.append(
                f"{self.name}: {count // self.splits} images a part for {classes} classes: value biased downward"
            )
        info = {
            "definition": DEFINITION,
            "classifier": made_with,
            "classes": classes,
            "splits": self.splits,
            "n_images": count,
            "comparable": comparable(DEFINITION, made_with, self.splits, count),
            "versions": library_versions("torch", "torchmetrics", "transformers", "pillow"),
            "warnings": warnings,
        }
        return MetricResult(values, info)

    def _classifier(self, device: str) -> tuple[Classifier, dict[str, Any]]:
        """Class probabilities [N, C] of uint8 images [N, 3, H, W], and what gives them."""
        key = f"metrics.{self.name}.classifier"
        if self.classifier == EFFICIENTNET:
            from research.metrics.extractors.load import load_efficientnet

            features = load_efficientnet(device)
            return features.probabilities, {**features.provenance, "layer": "softmax 1000"}
        if self.classifier == INCEPTION:
            from research.metrics.extractors.inception import logits_network

            network, made_with = logits_network(device)
            return lambda images: network(images.to(device)).softmax(-1), {**made_with}
        return _by_sentences(self.classifier, list(dict.fromkeys(self.labels or ())), device, key)


def _by_sentences(model: str, labels: list[str], device: str, key: str) -> tuple[Classifier, dict[str, Any]]:
    """A CLIP model that tells sentences apart."""
    from torch.nn.functional import normalize

    from research.metrics.extractors.clip import load_clip_features

    features = load_clip_features(model, device=device, key=key)
    clip = features.clip

    def probabilities(images: Tensor) -> Tensor:
        seen = normalize(features(images).double().cpu(), dim=1)
        sentences = normalize(clip.embed_texts(labels).double(), dim=1)
        return (float(clip.logit_scale) * seen @ sentences.T).softmax(-1)

    return probabilities, {
        "name": clip.name,
        "weights_sha256": clip.weights_sha256,
        "layer": "softmax over labels",
        "labels": labels,
        "preprocess": clip.preprocess.describe(),
    }


def inception_score(probabilities: Tensor) -> float:
    """Of class probabilities [N, C], rows summing to 1."""
    import torch

    marginal = probabilities.mean(0, keepdim=True)
    terms = torch.xlogy(probabilities, probabilities) - torch.xlogy(probabilities, marginal)
    return float(terms.sum(1).mean().exp())

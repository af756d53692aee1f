"""How much of the input picture is left in each image: SSIM and PSNR, of all of it or of the part that a mask keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from research.checks import check_choice
from research.errors import ConfigError
from research.metrics.base import JobMetric, MetricResult, check_count, comparable, library_versions, mean_over_images
from research.metrics.job import ScoredJob, needs_image, needs_mask, required_job
from research.pictures import as_shown

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

REGIONS = ("all", "kept", "drawn")
WINDOW = 11  # pixels of SSIM's window, with a deviation of 1.5
BORDERS = ("reflect", "crop")
BEST_PSNR = 99.0  # dB, of equal pictures, as the inversion task has it


class InputSimilarity(JobMetric):
    """Compares each image with the picture it was started from; what `SSIM` and `PSNR` share.

    Args:
        region: ``all`` pixels; those that an inpainting mask keeps (``kept``: mask below one half), or those it gives to the
            model (``drawn``).
        name: how the number is called, where a job has it of several regions.
    """

    def __init__(self, region: str, name: str) -> None:
        self.region, self.name = region, name

    @property
    def key(self) -> str:
        return f"metrics.{self.name}"

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for an unknown region, or no images."""
        check_choice(f"{self.key}.region", self.region, REGIONS)
        check_count(self.key, n_images)

    def check_job(self, config: Mapping[str, Any]) -> None:
        """Raises ConfigError for a task without an input picture, or without the mask that a region needs."""
        needs_image(self.key, config)
        if self.region != "all":
            needs_mask(self.key, config)

    def compute(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str] = (),
        *,
        device: str | torch.device = "cpu",
        job: ScoredJob | None = None,
    ) -> MetricResult:
        """Compares image by image; prompts play no part.

        Raises:
            ConfigError: the task has no picture, or a mask leaves no pixels of the region in some image.
        """
        self.check(n_images=len(images))
        job = required_job(self.key, job)
        self.check_job(job.config)
        scores = []
        inputs = job.inputs(images)
        masks = job.masks(images) if self.region != "all" else [None] * len(images)
        for row, (image, given, mask) in enumerate(zip(images, inputs, masks, strict=True)):
            where = self._where(row, image, mask)
            scores.append(self.score(_pixels(image), _pixels(given), where))
        settings = {
            "region": self.region,
            "input": "resized as the task does (diffusers' VaeImageProcessor)",
            **self.settings(),
        }
        info = {
            "definition": self.definition,
            **settings,
            **self.remarks(),
            "comparable": comparable(self.definition, settings),
            "versions": library_versions("torch", "torchmetrics", "pillow", "diffusers"),
            "warnings": [],
        }
        return mean_over_images(self.name, scores, info)

    definition = ""

    def settings(self) -> dict[str, str]:
        """What besides the region makes another number of it."""
        return {}

    def remarks(self) -> dict[str, str]:
        """What the record says of it besides."""
        return {}

    def score(self, image: Tensor, given: Tensor, where: Tensor) -> float:
        """Of pixels [3, H, W] in [0, 1], float64, over the pixels [H, W] that count."""
        raise NotImplementedError

    def _where(self, row: int, image: Image.Image, mask: Image.Image | None) -> Tensor:
        import numpy as np
        import torch

        if mask is None:
            return torch.ones(image.height, image.width, dtype=torch.bool)
        drawn = torch.from_numpy(np.asarray(mask, dtype=np.uint8).copy()) >= 128
        where = drawn if self.region == "drawn" else ~drawn
        if not bool(where.any()):
            raise ConfigError(
                f"{self.key}.region: found {self.region!r}, but the mask of image {row} leaves no such pixels; accepted is 'all'."
            )
        return where


class PSNR(InputSimilarity):
    """``psnr``: peak signal-to-noise ratio in dB between image and input, the mean over images; 99 for equal pixels.

    Args:
        region, name: see `InputSimilarity`.
    """

    name = "psnr"
    definition = f"10 log10(1 / mean squared error) of RGB in [0, 1], at most {BEST_PSNR:g} dB, mean over images"

    def __init__(self, region: str = "all", name: str = "psnr") -> None:
        super().__init__(region, name)

    def score(self, image: Tensor, given: Tensor, where: Tensor) -> float:
        error = float((image - given)[:, where].square().mean())
        return BEST_PSNR if error == 0 else min(BEST_PSNR, -10 * math.log10(error))


class SSIM(InputSimilarity):
    """``ssim``: structural similarity (Wang et al. 2004) of image and input, the mean over images; torchmetrics' windows of 11.

    With a region, pixels outside it are taken from the input on both sides first, so that what lies outside plays no part in the
    windows that reach over its edge; the map is then averaged over the region.

    Args:
        region, name: see `InputSimilarity`.
        border: ``reflect`` averages the map over all pixels, the picture mirrored at its edges (torchmetrics); ``crop`` over
            those whose windows lie inside the picture, 5 pixels from its edges on, as the paper's code, scikit-image and piq do.

    Raises:
        ConfigError: another border; a region without pixels that are so far from the edge.
    """

    name = "ssim"
    definition = "SSIM (Wang et al. 2004) of RGB in [0, 1], Gaussian window of 11 with deviation 1.5, mean over images"

    def __init__(self, region: str = "all", name: str = "ssim", border: str = "reflect") -> None:
        super().__init__(region, name)
        self.border = border

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for an unknown region or border, or no images."""
        super().check(n_images=n_images)
        check_choice(f"{self.key}.border", self.border, BORDERS)

    def settings(self) -> dict[str, str]:
        return {"border": "crop"} if self.border == "crop" else {}

    def remarks(self) -> dict[str, str]:
        told = {
            "reflect": "all pixels, the picture mirrored at its edges",
            "crop": f"pixels {WINDOW // 2} and more from the edges",
        }
        return {"averaged_over": told[self.border]}

    def score(self, image: Tensor, given: Tensor, where: Tensor) -> float:
        import torch
        from torchmetrics.functional.image import structural_similarity_index_measure

        if min(where.shape) < WINDOW:
            raise ConfigError(
                f"{self.key}: found images of {where.shape[1]} x {where.shape[0]} pixels; "
                f"accepted are sides from {WINDOW}, its window."
            )
        seen = torch.where(where, image, given)
        mean, similarity = structural_similarity_index_measure(
            seen[None], given[None], data_range=1.0, return_full_image=True, reduction="none"
        )
        if self.border == "crop":
            inside = torch.zeros_like(where)
            edge = WINDOW // 2
            inside[edge:-edge, edge:-edge] = True
            where = where & inside
            if not bool(where.any()):
                raise ConfigError(
                    f"{self.key}.border: found 'crop', but region {self.region!r} has no pixels {edge} from the edges; "
                    "accepted is 'reflect'."
                )
        if bool(where.all()):
            return float(mean)
        return float(similarity[0][:, where].mean())


def _pixels(image: Image.Image) -> Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(as_shown(image))).permute(2, 0, 1).double() / 255

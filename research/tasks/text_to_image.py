"""Text to image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from research.errors import ConfigError
from research.sampling.interfaces import Batch, Condition, ModelFacts, Solver
from research.sampling.timeline import Timeline
from research.tasks.base import BaseTask, Conditions
from research.tasks.span import checked_part, span


class TextToImage(BaseTask):
    """Images of sentences.

    Args:
        prompt: one sentence for all seeds, or a list with one a seed.
        negative_prompt: what guidance leads away from: None for the empty sentence, one for all, or a list with one a seed.
        height, width: pixels, multiples of the VAE's factor; the model's own size by default.
        latents: start from this noise instead of the seeds': standard normal [N, C, h, w], one an image, or [1, C, h, w] for all
            (as diffusers' ``latents``: the scheduler's scale is applied to it).
        denoising_end: stop at this part of training time, between 0 and 1: the result's latents are still noisy, for another
            model to go on with. Its pictures are what the decoder makes of them.
        denoising_start: go on from this part of training time with ``latents``, taken as they are, as a run with
            ``denoising_end`` of the same scheduler and steps left them (``SampleResult.latents``).

    Raises:
        ConfigError: a setting is of another kind or out of range.
    """

    name = "text_to_image"
    requires = frozenset({"text"})

    def __init__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        latents: Tensor | None = None,
        denoising_end: float | None = None,
        denoising_start: float | None = None,
    ):
        self.latents = latents
        self.denoising_end = checked_part("task.denoising_end", denoising_end)
        self.denoising_start = checked_part("task.denoising_start", denoising_start)
        if self.denoising_start is not None:
            if latents is None:
                raise ConfigError(
                    "task.latents: found null with task.denoising_start; accepted are latents to go on from."
                )
            if self.denoising_end is not None and self.denoising_end <= self.denoising_start:
                raise ConfigError(
                    f"task.denoising_end: found {denoising_end}; accepted is more than task.denoising_start={denoising_start}."
                )
        self.prompts: str | list[str] = sentences("prompt", prompt)
        self.negative_prompt = None if negative_prompt is None else sentences("negative_prompt", negative_prompt)
        self.height, self.width = height, width

    def check(self, model: ModelFacts, n_images: int) -> None:
        super().check(model, n_images)
        for key, texts in (("prompt", self.prompts), ("negative_prompt", self.negative_prompt)):
            if isinstance(texts, list) and len(texts) != n_images:
                raise ConfigError(
                    f"{key}: found {len(texts)} sentences for {n_images} seeds; accepted is one for all, or one a seed."
                )

        if self.latents is None:
            return
        if not isinstance(self.latents, Tensor):
            raise ConfigError(f"task.latents: found {type(self.latents).__name__}; accepted is a tensor.")
        shape = model.latent_shape(*self._size(model))
        found = tuple(self.latents.shape)
        if found not in ((1, *shape), (n_images, *shape)):
            raise ConfigError(
                f"task.latents: found the shape {list(found)}; accepted is {[n_images, *shape]} or {[1, *shape]}."
            )

    def vectorises(self) -> bool:
        return True

    def timeline(self, solver: Solver, steps: int, device: torch.device) -> Timeline:
        if self.denoising_start is None and self.denoising_end is None:
            return super().timeline(solver, steps, device)
        return span(solver, steps, device, self.denoising_start, self.denoising_end)

    def latent_shape(self, model: ModelFacts) -> tuple[int, int, int]:
        return model.latent_shape(*self._size(model))

    def _size(self, model: ModelFacts) -> tuple[int | None, int | None]:
        """Height and width in pixels; None for the model's own. Latents that are gone on with have their own."""
        if self.denoising_start is None or self.latents is None or self.latents.ndim != 4:
            return self.height, self.width
        height, width = (side * model.vae_factor for side in self.latents.shape[2:])
        return self.height or height, self.width or width

    def start(self, run: Batch) -> Tensor:
        if self.latents is None:
            return super().start(run)
        rows = self.latents[list(run.rows)] if len(self.latents) > 1 else self.latents
        given = rows.to(run.model.device, run.model.noise_dtype).expand(len(run.rows), -1, -1, -1)
        if self.denoising_start is not None:
            return given
        run.start_noise = given
        return run.solver.scale_noise(given)

    def conditions(self, run: Batch) -> Mapping[str, Condition]:
        given = self.negative_prompt is not None
        negative = "" if self.negative_prompt is None else self.negative_prompt
        # pipelines encode the negative prompts in as many rows as the prompts
        together = isinstance(self.prompts, list)
        makers = {"cond": lambda: self._told(run, self.prompts, together=together)}
        if given or not (run.parity and run.model.guided_by_negative_alone):
            makers["uncond"] = lambda: self._told(run, negative, together=together, negative=True, given=given)
        return Conditions(makers)

    def condition(self, run: Batch, texts: str | Sequence[str], *, negative: bool = False) -> Condition:
        given = one_or_each(run, texts)
        return self._told(run, given, together=isinstance(given, list), negative=negative)

    def _told(
        self, run: Batch, texts: str | Sequence[str], *, together: bool, negative: bool = False, given: bool = True
    ) -> Condition:
        size = self.picture_size(run.model)
        return encode_texts(run, texts, together=together, negative=negative, given=given, size=size)

    def finish(self, run: Batch, latents: Tensor) -> list[Any]:
        if self.negative_prompt and isinstance(run.conditions, Conditions) and not run.conditions.made("uncond"):
            name = f"{type(run.guidance).__name__}, scale {run.guidance.scale:g}"
            run.warn(f"negative_prompt: not used, because this guidance ({name}) makes no unconditional prediction.")
        return super().finish(run, latents)


def one_or_each(run: Batch, texts: str | Sequence[str]) -> str | list[str]:
    """One sentence for all images, or one an image of the job.

    Raises:
        ConfigError: there is another number of sentences.
    """
    given = sentences("prompt", texts)
    if isinstance(given, list) and len(given) != run.n_images:
        raise ConfigError(
            f"prompt: found {len(given)} sentences for {run.n_images} images; accepted is one for all, or one an image."
        )
    return given


def encode_texts(
    run: Batch,
    texts: str | Sequence[str],
    *,
    together: bool,
    negative: bool = False,
    given: bool = True,
    size: tuple[int, int] | None = None,
) -> Condition:
    """The condition of one text for all images of the run or of one text an image.

    Args:
        together: with parity, encode a text in each of the batch's rows as the pipeline does for a list of prompts, and not once.
        negative, given, size: see `research.sampling.interfaces.Model.condition`.
    """
    told: dict[str, Any] = {"negative": negative, "given": given, "size": size}
    mine = [texts] * len(run.seeds) if isinstance(texts, str) else [texts[row] for row in run.rows]
    note_dropped(run, mine)
    if not run.parity:
        return run.model.condition(mine, **told)
    if together or not isinstance(texts, str):
        return run.model.condition(mine, **told, together=True)
    return run.model.condition([texts], **told, together=True).repeated(len(mine))


def note_dropped(run: Batch, texts: Sequence[str]) -> None:
    """Keep in the run's record what of each text is longer than the text encoder takes."""
    for text in dict.fromkeys(texts):
        if (rest := run.model.text.dropped(text)) is not None:
            entry = {"prompt": text, "dropped": rest}
            if entry not in run.truncated:
                run.truncated.append(entry)
                run.warn(f"prompt: longer than {run.model.text.max_tokens} tokens, dropped {rest!r}.")


def sentences(key: str, given: str | Sequence[str]) -> str | list[str]:
    """One sentence as it is, or several as a list.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(given, str):
        return given
    try:
        texts = list(given)
    except TypeError:
        texts = []
    if not texts or not all(isinstance(text, str) for text in texts):
        found = "an empty list" if isinstance(given, Sequence) and not given else repr(given)
        raise ConfigError(f"{key}: found {found}; accepted is a sentence or a list of sentences.")
    return texts

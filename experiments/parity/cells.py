"""One cell of the matrix: the same settings through the diffusers pipeline and through the loop, and the verdict."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from random_models import PREDICTIONS, save_pixel, save_text

from research import LoopSampler, load_model
from research.errors import UserError
from research.guidance import CFG
from research.solvers import resolve
from research.tasks import DepthToImage, ImageToImage, Inpaint, TextToImage, Unconditional

# by task: the role of the model, its pipeline, and whether a picture and a mask are given
TASKS: dict[str, tuple[str, str, bool, bool]] = {
    "text_to_image": ("text", "StableDiffusionPipeline", False, False),
    "image_to_image": ("text", "StableDiffusionImg2ImgPipeline", True, False),
    "inpaint, 4 channels": ("text", "StableDiffusionInpaintPipeline", True, True),
    "inpaint, 9 channels": ("inpaint", "StableDiffusionInpaintPipeline", True, True),
    "depth_to_image": ("depth", "StableDiffusionDepth2ImgPipeline", True, False),
    "unconditional": ("pixel", "", False, False),
}
# one picture and one seed; a list of pictures and prompts; one picture and prompt for two seeds
KINDS = ("one", "list", "two")


@dataclass(frozen=True)
class Setting:
    """What decides a cell."""

    task: str
    scheduler: str
    prediction: str = "epsilon"
    steps: int = 7
    strength: float = 1.0
    scale: float = 3.5
    kind: str = "one"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the scheduler

    def __str__(self) -> str:
        strength = f", strength {self.strength:g}" if TASKS[self.task][2] else ""
        scale = f", scale {self.scale:g}" if self.task != "unconditional" else ""
        return f"{self.prediction}, {self.steps} steps{strength}{scale}, {self.kind}"


@dataclass(frozen=True)
class Verdict:
    """``kind``: "equal", "both fail" (with a clear line of ours), "only ours runs", "refused" (by ours: no step to run),
    "differs".
    """

    kind: str
    said: str = ""

    @property
    def fine(self) -> bool:
        return self.kind != "differs"


class Bench:
    """The models, the pipelines on the same weights, and the pictures of one run of the matrix.

    Args:
        folder: where the models are saved.
        seed: of weights, pictures, masks and images.
        height, width: of the pictures in pixels; the images made are of the multiples of 8 below.
    """

    def __init__(self, folder: Path, *, seed: int, height: int, width: int):
        self.seed, self.size = seed, (height, width)
        self.made = (height - height % 8, width - width % 8)
        numbers = np.random.default_rng(seed)

        def picture(h: int, w: int) -> Image.Image:
            return Image.fromarray(numbers.integers(0, 256, (h, w, 3), dtype=np.uint8))

        # the second one is of another size, which the pipelines take to the first one's
        self.images = [picture(height, width), picture(height + 5, max(width - 3, 8))]
        self.masks = [
            Image.fromarray(numbers.integers(0, 256, shape, dtype=np.uint8))
            for shape in ((height, width), (height + 2, width + 7))
        ]
        self.folder = folder

    @cache  # noqa: B019  # one bench a process
    def directory(self, role: str, prediction: str) -> Path:
        path = self.folder / f"{role}-{prediction}"
        seed = self.seed + 10 * PREDICTIONS.index(prediction)
        if role == "pixel":
            return save_pixel(path, prediction=prediction, seed=seed)
        return save_text(path, role=role, prediction=prediction, seed=seed)

    @cache  # noqa: B019
    def model(self, role: str, prediction: str) -> Any:
        return load_model(self.directory(role, prediction), dtype="float32", device="cpu")

    @cache  # noqa: B019
    def pipeline(self, task: str, prediction: str) -> Any:
        role, name, *_ = TASKS[task]
        checker = {} if role == "depth" else {"safety_checker": None}
        pipe = getattr(diffusers, name).from_pretrained(self.directory(role, prediction), **checker)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def scheduler(self, setting: Setting) -> Any:
        """As the pipeline gets it: from its own scheduler's config, by the class's name."""
        role = TASKS[setting.task][0]
        config = self.model(role, setting.prediction).scheduler_config
        spec = resolve(setting.scheduler)
        # built once: some classes take a tenth of a second
        key = (setting.scheduler, role, setting.prediction, repr(sorted(options_of(setting).items())))
        if key not in _BUILT:
            options = {**spec.options, **options_of(setting)}
            _BUILT[key] = getattr(diffusers, spec.class_name).from_config(config, **options)
        return copy.deepcopy(_BUILT[key])

    def seeds(self, setting: Setting) -> list[int]:
        return [self.seed + 3] if setting.kind == "one" else [self.seed + 3, 2**40 + self.seed]

    # -- theirs

    def by_pipeline(self, setting: Setting) -> tuple[torch.Tensor | None, list[Image.Image]]:
        """Final latents and images of the diffusers pipeline."""
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds(setting)]
        if setting.task == "unconditional":
            return self._without_text(setting, generators)
        pipe = self.pipeline(setting.task, setting.prediction)
        pipe.scheduler = self.scheduler(setting)
        kept: list[torch.Tensor] = []
        arguments = self._pictures(setting, "mask_image")
        if TASKS[setting.task][2]:
            arguments["strength"] = setting.strength
        if setting.task == "text_to_image" or "inpaint" in setting.task:
            arguments |= dict(zip(("height", "width"), self.made, strict=True))

        def keep(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
            kept[:] = [values["latents"]]
            return {}

        prompts, negative = texts(setting)
        images = pipe(
            prompts,
            negative_prompt=negative,
            num_inference_steps=setting.steps,
            guidance_scale=setting.scale,
            num_images_per_prompt=2 if setting.kind == "two" else 1,
            generator=generators,
            callback_on_step_end=keep,
            output_type="pil",
            **arguments,
        ).images
        return kept[0], images

    @torch.no_grad()
    def _without_text(self, setting: Setting, generators: Any) -> tuple[torch.Tensor | None, Any]:
        model = self.model("pixel", setting.prediction)
        scheduler = self.scheduler(setting)
        if (name := {"ddpm": "DDPMPipeline", "ddim": "DDIMPipeline"}.get(setting.scheduler)) is not None:
            pipe = getattr(diffusers, name)(unet=model.unet, scheduler=scheduler)
            pipe.set_progress_bar_config(disable=True)
            images = pipe(len(generators), generator=generators, num_inference_steps=setting.steps).images
            return None, images
        # no pipeline of diffusers drives the others without text: the loop that its documentation teaches
        scheduler.set_timesteps(setting.steps)
        x = torch.cat([torch.randn((1, 3, *model.latent_shape()[1:]), generator=g) for g in generators])
        x = x * scheduler.init_noise_sigma
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        extra = {"generator": generators} if takes_generator else {}
        for t in scheduler.timesteps:
            output = model.unet(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(output, t, x, **extra).prev_sample
        return x, None

    # -- ours

    def by_loop(self, setting: Setting, *, parity: bool = True) -> Any:
        """The result of the loop."""
        sampler = LoopSampler(
            self.model(TASKS[setting.task][0], setting.prediction),
            scheduler=setting.scheduler,
            scheduler_options=options_of(setting),
            guidance=None if setting.task == "unconditional" else CFG(setting.scale),
            parity=parity,
        )
        return sampler.sample(self._task(setting), seeds=self.seeds(setting), steps=setting.steps)

    def _task(self, setting: Setting) -> Any:
        prompts, negative = texts(setting)
        shape = dict(zip(("height", "width"), self.made, strict=True))
        pictures = self._pictures(setting, "mask")
        if "inpaint" in setting.task:
            return Inpaint(prompts, strength=setting.strength, negative_prompt=negative, **shape, **pictures)
        make: dict[str, Callable[[], Any]] = {
            "text_to_image": lambda: TextToImage(prompts, negative, **shape),
            "image_to_image": lambda: ImageToImage(
                prompts, strength=setting.strength, negative_prompt=negative, **pictures
            ),
            "depth_to_image": lambda: DepthToImage(
                prompts, strength=setting.strength, negative_prompt=negative, **pictures
            ),
            "unconditional": Unconditional,
        }
        return make[setting.task]()

    def _pictures(self, setting: Setting, mask: str) -> dict[str, Any]:
        _, _, image, masked = TASKS[setting.task]
        which: Any = slice(None) if setting.kind == "list" else 0
        given = {"image": self.images[which]} if image else {}
        return {**given, mask: self.masks[which]} if masked else given


_BUILT: dict[tuple[str, ...], Any] = {}


def texts(setting: Setting) -> tuple[Any, Any]:
    """Prompts and negative prompts."""
    if setting.kind == "list":
        return ["a cat", "no dog at all, and a prompt that is far too long"], ["x", ""]
    return "a cat", "dog" if setting.kind == "one" else None


def options_of(setting: Setting) -> dict[str, Any]:
    """The one class that takes no generator draws from the global one, unless it is given a seed."""
    seed = {"noise_sampler_seed": 5} if setting.scheduler == "dpmpp_sde" else {}
    return {**seed, **setting.options}


def compare(bench: Bench, setting: Setting) -> Verdict:
    """The verdict on a cell."""
    wanted, trouble = attempt(lambda: bench.by_pipeline(setting))
    found, mine = attempt(lambda: bench.by_loop(setting))
    if mine is not None and not isinstance(mine, UserError):
        return Verdict("differs", f"ours ends in a traceback: {line(mine)}")
    if wanted is not None and wanted[0] is not None and not torch.isfinite(wanted[0]).all():
        trouble = ArithmeticError("NaN or infinite latents, and a picture of them")
    if trouble is not None:
        kind = "only ours runs" if mine is None else "both fail"
        return Verdict(kind, f"pipeline: {line(trouble)}" + (f"; ours: {line(mine)}" if mine else ""))
    if mine is not None and int(setting.steps * setting.strength) < 1:
        # PNDM has an evaluation more than steps, which image-to-image pipelines make even of no step at all
        return Verdict("refused", f"the pipeline makes one evaluation, ours says: {line(mine)}")
    if mine is not None:
        return Verdict("differs", f"the pipeline runs, ours says: {line(mine)}")
    latents, images = wanted
    if latents is not None and not torch.equal(latents, found.latents):
        if latents.shape != found.latents.shape:
            return Verdict("differs", f"shape {tuple(latents.shape)}, ours {tuple(found.latents.shape)}")
        return Verdict("differs", f"latents by up to {float((latents - found.latents).abs().max()):.3g}")
    same = images is None or [(i.size, i.tobytes()) for i in images] == [(i.size, i.tobytes()) for i in found.images]
    return Verdict("equal") if same else Verdict("differs", "images alone")


def attempt(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return call(), None
    except Exception as error:  # whatever a pipeline ends with is what is to be known
        return None, error


def line(error: Exception) -> str:
    """An error as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}{'...' if len(text) > 160 else ''}"

"""Every family of models against its diffusers pipelines, bit for bit: final latents, as Markdown.

    python experiments/parity/families.py [DIRECTORY ...] [--out experiments/parity/families.md]
        [--seed 0] [--size 32x48] [--steps 3,4]

Directories are pipelines on this disk; without one, a small random one of each family is built, its weights by --seed. The exit
code is 1 if a cell differs.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("DIFFUSERS_VERBOSITY", "critical")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import numpy as np
import torch
from PIL import Image

from research import LoopSampler, load_model
from research.errors import UserError
from research.guidance import CFG, Guidance, Renorm
from research.sampling.packing import unpack
from research.tasks import ImageToImage, Inpaint, TextToImage, Unconditional
from research.testing.random_pipelines import BUILDERS, lively

PROMPTS = ["a fox in the snow", "no pizza at all"]
NEGATIVES = ["blurry", "bad picture"]


@dataclass(frozen=True)
class Call:
    """How a pipeline is called.

    Attributes:
        scale: its argument for the guidance scale.
        guidance: the guidance that it has at a scale above 1.
        negative: whether it takes negative prompts.
        only_negative: it guides if a negative prompt is given.
        more: further arguments.
        pictures: pipelines of the same parts that start from pictures: image-to-image and inpainting.
        packed: its latents are tokens.
    """

    scale: str = "guidance_scale"
    guidance: Callable[[float], Guidance] = CFG
    negative: bool = True
    only_negative: bool = False
    more: dict[str, Any] = field(default_factory=dict)
    pictures: tuple[str | None, str | None] = (None, None)
    packed: bool = False


CALLS = {
    "StableDiffusionPipeline": Call(pictures=("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")),
    "StableDiffusionXLPipeline": Call(
        pictures=("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
    ),
    "LatentConsistencyModelPipeline": Call(negative=False, pictures=("LatentConsistencyModelImg2ImgPipeline", None)),
    "StableDiffusion3Pipeline": Call(pictures=("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline")),
    "FluxPipeline": Call(
        "true_cfg_scale", only_negative=True, pictures=("FluxImg2ImgPipeline", "FluxInpaintPipeline"), packed=True
    ),
    "ChromaPipeline": Call(pictures=("ChromaImg2ImgPipeline", None), packed=True),
    "QwenImagePipeline": Call(
        "true_cfg_scale",
        lambda scale: Renorm(CFG(scale), over="tokens"),
        only_negative=True,
        pictures=("QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
        packed=True,
    ),
    "PixArtAlphaPipeline": Call(more={"use_resolution_binning": False}),
    "PixArtSigmaPipeline": Call(more={"use_resolution_binning": False}),
    "SanaPipeline": Call(more={"use_resolution_binning": False}),
    "SanaSprintPipeline": Call(
        negative=False, more={"use_resolution_binning": False}, pictures=("SanaSprintImg2ImgPipeline", None)
    ),
    "Lumina2Pipeline": Call(guidance=lambda scale: Renorm(CFG(scale), over="rows")),
    "AuraFlowPipeline": Call(),
    "DiTPipeline": Call(negative=False),
}


@dataclass(frozen=True)
class Cell:
    task: str
    scheduler: str
    scale: float
    negative: bool
    images: int
    steps: int
    size: tuple[int, int]
    strength: float | None = None

    def __str__(self) -> str:
        told = "negative prompts" if self.negative else "no negative prompt"
        strength = "" if self.strength is None else f", strength {self.strength:g}"
        height, width = self.size
        return (
            f"{self.task}, {self.scheduler}, scale {self.scale:g}, {told}, {self.images} images, {self.steps} steps, "
            f"{height} x {width}{strength}"
        )


class Bench:
    """A directory's model and pipeline."""

    def __init__(self, directory: Path, seed: int):
        self.directory, self.seed = directory, seed
        index = json.loads((directory / "model_index.json").read_text())
        self.kind = index["_class_name"]
        self.call = CALLS[self.kind]
        # diffusers itself wants to be told of what is not there
        absent = {name: None for name, entry in index.items() if isinstance(entry, list) and entry[0] is None}
        self.pipe = diffusers.DiffusionPipeline.from_pretrained(directory, **absent)
        self.model = load_model(directory, device="cpu", dtype="float32")
        self.seeds = [seed + 3, seed + 2**33]

    def cells(self, sizes: Sequence[tuple[int, int]], steps: Sequence[int]) -> Iterator[Cell]:
        for place, (negative, scale, images, scheduler) in enumerate(
            [
                (False, 1.0, 1, "model"),
                (True, 3.5, 2, "model"),
                (False, 3.5, 2, self.another),
                (True, 3.5, 1, self.another),
                (True, 1.0, 2, "model"),
            ]
        ):
            negative = negative and self.call.negative and not self.distilled
            if negative and scale == 1.0 and self.call.only_negative:
                continue
            yield Cell("text", scheduler, scale, negative, images, steps[place % len(steps)], sizes[place % len(sizes)])
        for task, cls in zip(("image-to-image", "inpaint"), self.call.pictures, strict=True):
            for place, strength in enumerate((0.55, 1.0) if cls else ()):
                negative = not self.distilled
                yield Cell(task, "model", 3.5, negative, 2, 4 + place, sizes[place % len(sizes)], strength)

    @property
    def distilled(self) -> bool:
        """Whether the scale is told to the network in place of guiding."""
        return self.call.scale == "guidance_scale" and self.model.distilled_guidance is not None

    @property
    def another(self) -> str:
        """A second scheduler that the pipeline takes."""
        if self.kind in ("LatentConsistencyModelPipeline", "SanaSprintPipeline"):
            return "model"
        flow = "FlowMatch" in str(self.model.scheduler_config.get("_class_name"))
        return "model" if flow or "use_flow_sigmas" in self.model.scheduler_config else "ddim"

    def agree(self, cell: Cell) -> tuple[str, str]:
        """Whether both give the same latents: a verdict and what is to be said of it."""
        try:
            want = self.by_pipeline(cell)
        except Exception as error:  # whatever a pipeline raises is told
            return "pipeline fails", f"{type(error).__name__}: {str(error).splitlines()[0]:.90}"
        try:
            got = self.by_loop(cell)
        except UserError as error:
            return "differs", str(error)
        if torch.equal(got, want):
            return "equal", ""
        return "differs", f"by {float((got - want).abs().max() / want.std()):.2g} of the spread"

    def by_loop(self, cell: Cell) -> torch.Tensor:
        guided = cell.scale > 1 and (cell.negative or not self.call.only_negative) and not self.distilled
        guidance = self.call.guidance(cell.scale) if guided else Guidance()
        prompts = PROMPTS[: cell.images]
        negative = NEGATIVES[: cell.images] if cell.negative else None
        if self.kind == "DiTPipeline":
            task: Any = Unconditional(class_label=[1, 3][: cell.images])
        elif cell.strength is None:
            task = TextToImage(prompts, negative, *cell.size)
        elif cell.task == "inpaint":
            task = Inpaint(prompts, self.pictures(cell), mask(cell.size), cell.strength, negative, *cell.size)
        else:
            task = ImageToImage(prompts, self.pictures(cell), cell.strength, negative, *cell.size)
        sampler = LoopSampler(self.model, cell.scheduler, guidance=guidance, parity=True)
        return sampler.sample(task, seeds=self.seeds[: cell.images], steps=cell.steps).latents

    def by_pipeline(self, cell: Cell) -> torch.Tensor:
        pipe = self.pipe
        if cell.strength is not None:
            pipe = self._of_pictures(self.call.pictures[cell.task == "inpaint"])
        pipe.scheduler = LoopSampler(self.model, cell.scheduler, parity=True)._new_solver().scheduler
        pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds[: cell.images]]
        told: dict[str, Any] = {"num_inference_steps": cell.steps, "generator": generators, **self.call.more}
        if self.kind == "DiTPipeline":
            return _last_latents(pipe, cell, told)
        told |= {
            "prompt": PROMPTS[: cell.images],
            "output_type": "latent",
            "height": cell.size[0],
            "width": cell.size[1],
        }
        told[self.call.scale] = cell.scale
        if self.kind == "SanaSprintPipeline":  # told by default an angle that it takes with two steps alone
            told["intermediate_timesteps"] = 1.3 if cell.steps == 2 else None
        if cell.negative:
            told["negative_prompt"] = NEGATIVES[: cell.images]
        if self.kind == "LatentConsistencyModelPipeline" or self.model.distilled_guidance is not None:
            told["guidance_scale"] = self.model.distilled_guidance
        if cell.strength is not None:
            told |= {"image": self.pictures(cell), "strength": cell.strength}
            if cell.task == "inpaint":
                told["mask_image"] = mask(cell.size)
            known = inspect.signature(pipe.__call__).parameters
            told = {key: value for key, value in told.items() if key in known}
        latents = pipe(**told).images
        if self.call.packed and latents.ndim == 3:
            side = self.model.vae_factor
            latents = unpack(latents, cell.size[0] // side, cell.size[1] // side)
        return latents

    def pictures(self, cell: Cell) -> list[Image.Image]:
        numbers = np.random.default_rng(self.seed)
        shape = (cell.images, *cell.size, 3)
        return [Image.fromarray(pixels) for pixels in numbers.integers(0, 255, shape, dtype=np.uint8)]

    def _of_pictures(self, cls: str | None) -> Any:
        made = getattr(diffusers, str(cls))
        known = inspect.signature(made.__init__).parameters
        kept = {name: value for name, value in self.pipe.config.items() if name in known and isinstance(value, bool)}
        return made(**{name: part for name, part in self.pipe.components.items() if name in known}, **kept)


def mask(size: tuple[int, int]) -> Image.Image:
    """White on the right."""
    made = Image.new("L", size[::-1])
    made.paste(255, (size[1] // 2, 0, size[1], size[0]))
    return made


def _last_latents(pipe: Any, cell: Cell, told: dict[str, Any]) -> torch.Tensor:
    """The latents of a pipeline that gives pictures alone, as its last step makes them."""
    seen: list[torch.Tensor] = []
    own = pipe.scheduler.step

    def step(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        seen.append(out[0] if isinstance(out, tuple) else out.prev_sample)
        return out

    pipe.scheduler.step = step
    pipe(class_labels=[1, 3][: cell.images], guidance_scale=cell.scale, output_type="np", **told)
    return seen[-1][: cell.images]


def redrawn(name: str, folder: Path, seed: int) -> Path:
    """A small random pipeline of a family whose weights are drawn by a seed."""
    BUILDERS[name](folder / name)
    if seed:
        bench_index = json.loads((folder / name / "model_index.json").read_text())
        absent = {key: None for key, entry in bench_index.items() if isinstance(entry, list) and entry[0] is None}
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder / name, **absent)
        for place, part in enumerate(pipe.components.values()):
            if isinstance(part, torch.nn.Module):
                lively(part, 1000 * seed + place)
        pipe.save_pretrained(folder / name)
    return folder / name


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directories", nargs="*", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of weights, pictures and images")
    parser.add_argument("--size", type=lambda text: tuple(map(int, text.split("x"))), default=None)
    parser.add_argument("--steps", type=lambda text: [int(n) for n in text.split(",")], default=[3, 4])
    parser.add_argument("--out", help="the Markdown file; printed by default")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # bit-equality is promised for one machine as it is; quickest at this size
    rows, differ = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        built = args.directories or [redrawn(name, Path(scratch), args.seed) for name in BUILDERS]
        for directory in built:
            kind = json.loads((directory / "model_index.json").read_text())["_class_name"]
            if kind not in CALLS:
                print(f"{directory}: {kind} is not compared here", file=sys.stderr)
                continue
            bench = Bench(directory, args.seed)
            # pipelines want more than their networks do: multiples of 8, or of 32
            side = math.lcm(bench.model.size_multiple, 32 if kind.startswith("Sana") else 16)
            own = bench.model.latent_shape(None, None)[1:]
            sizes = [args.size] if args.size else [(2 * side, 2 * side), (3 * side, 2 * side)]
            if kind == "DiTPipeline":  # of one size
                sizes = [tuple(n * bench.model.vae_factor for n in own)]
            found = [(cell, *bench.agree(cell)) for cell in bench.cells(sizes, args.steps)]
            equal = sum(verdict == "equal" for _, verdict, _ in found)
            differ += sum(verdict == "differs" for _, verdict, _ in found)
            told = "; ".join(f"{cell}: {verdict}, {why}" for cell, verdict, why in found if verdict != "equal")
            rows.append(f"| {directory.name} | {kind} | {equal} of {len(found)} | {told.replace('|', ' ')} |")
            print(rows[-1], flush=True)
    page = "\n".join(
        [
            "# Families of models against their pipelines",
            "",
            f"`python experiments/parity/families.py --seed {args.seed}`: final latents, `torch.equal`, CPU, float32.",
            "",
            "| directory | pipeline | equal | otherwise |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )
    if args.out:
        Path(args.out).write_text(page, encoding="utf-8")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())

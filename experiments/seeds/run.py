"""What changes an image, bit by bit or for all to see: its seed again in other batches, orders, processes, threads, dtypes.

    python -m experiments.seeds.run                            # six minutes of one core
    python -m experiments.seeds.run --short                    # under half a minute: one scheduler, few steps, no other machine
    python -m experiments.seeds.run --model stable-diffusion-v1-5/stable-diffusion-v1-5 --device cuda --steps 25

Every variation draws the same seeds with the same prompts, and its final latents and 8-bit pictures are held against those of
the base: all seeds in one batch, float32, one thread. Writes results.json; analyse.py makes the table and the figure of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from research import LoopSampler, load_model
from research.guidance import CFG
from research.tasks import TextToImage

PROMPTS = (
    "pizza on a blue background",
    "cat face on a green background",
    "strawberry on a yellow background",
    "tiger face on an orange background",
)
SCHEDULERS = ("ddim", "dpmpp_2m", "euler_a")
OLDER_CPU = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


@dataclass(frozen=True)
class Setting:
    """How the seeds are drawn."""

    model: str = "emoji"
    device: str = "auto"
    dtype: str = "float32"
    scheduler: str = "ddim"
    steps: int = 20
    scale: float = 3.0
    seeds: tuple[int, ...] = tuple(range(16))
    batch: int | None = None
    threads: int = 1
    parity: bool = False


@dataclass(frozen=True)
class Drawn:
    """Final latents [N, ...] in float64 and pictures [N, H, W, 3] of bytes, one a seed."""

    latents: NDArray[np.float64]
    pictures: NDArray[np.uint8]

    def at(self, rows: list[int]) -> Drawn:
        return Drawn(self.latents[rows], self.pictures[rows])


def prompt(seed: int) -> str:
    """A prompt belongs to its seed, whatever stands beside it."""
    return PROMPTS[seed % len(PROMPTS)]


def draw(setting: Setting, models: dict[tuple[str, str, str], Any]) -> Drawn:
    torch.set_num_threads(setting.threads)
    which = setting.model, setting.device, setting.dtype
    if which not in models:
        models[which] = load_model(setting.model, device=setting.device, dtype=setting.dtype)
    sampler = LoopSampler(models[which], setting.scheduler, guidance=CFG(setting.scale), parity=setting.parity)
    task = TextToImage([prompt(seed) for seed in setting.seeds])
    made = sampler.sample(task, seeds=setting.seeds, steps=setting.steps, batch_size=setting.batch)
    pictures = np.stack([np.asarray(image.convert("RGB")) for image in made.images])
    return Drawn(made.latents.double().cpu().numpy(), pictures)


def draw_elsewhere(setting: Setting, environment: dict[str, str] | None = None) -> Drawn:
    """The same in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "drawn.npz")
        words = [sys.executable, "-m", "experiments.seeds.run", "--child", json.dumps(asdict(setting))]
        root = str(Path(__file__).parents[2])
        subprocess.run([*words, str(out)], check=True, cwd=root, env={**os.environ, **(environment or {})}, timeout=600)
        with np.load(out) as found:
            return Drawn(found["latents"], found["pictures"])


def child(told: str, out: str) -> int:
    setting = json.loads(told)
    drawn = draw(Setting(**{**setting, "seeds": tuple(setting["seeds"])}), {})
    np.savez(out, latents=drawn.latents, pictures=drawn.pictures)
    return 0


def pipeline(base: Setting, count: int) -> Drawn:
    """diffusers' own pipeline with one generator for the whole batch, as its examples have it."""
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline

    from research.zoo import zoo_path

    pipe = StableDiffusionPipeline.from_pretrained(
        zoo_path(base.model), safety_checker=None, requires_safety_checker=False
    )
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)

    def run(kind: str) -> Any:
        return pipe(
            [prompt(seed) for seed in base.seeds[:count]],
            num_inference_steps=base.steps,
            guidance_scale=base.scale,
            generator=torch.Generator().manual_seed(0),
            output_type=kind,
        ).images

    pictures = np.stack([np.asarray(image.convert("RGB")) for image in run("pil")])
    return Drawn(run("latent").double().numpy(), pictures)


def variations(
    base: Setting, models: dict[Any, Any], short: bool
) -> Iterator[tuple[str, str, Callable[[], Drawn], list[int]]]:
    """What is varied, its kind, how it is drawn, and which of the base's seeds it draws."""
    seeds, everyone = base.seeds, list(range(len(base.seeds)))
    on_cpu = base.device == "cpu" or (base.device == "auto" and not torch.cuda.is_available())

    def here(**changes: Any) -> Callable[[], Drawn]:
        return lambda: draw(replace(base, **changes), models)

    def after_others() -> Drawn:
        draw(replace(base, steps=3, scale=7.0, seeds=(90, 91)), models)
        torch.manual_seed(1234)
        torch.randn(99)
        np.random.default_rng(1).random(9)
        return draw(base, models)

    def without_onednn() -> Drawn:
        with torch.backends.mkldnn.flags(enabled=False):
            return draw(base, models)

    yield "the same again", "order", here(), everyone
    yield "after another job, global random state moved", "order", after_others, everyone
    yield (
        "seeds in reverse",
        "order",
        lambda: draw(replace(base, seeds=seeds[::-1]), models).at(everyone[::-1]),
        everyone,
    )
    mates = (*seeds[:4], *(1000 + seed for seed in seeds[4:]))
    yield (
        "other seeds in the batch",
        "batch",
        lambda: draw(replace(base, seeds=mates), models).at([0, 1, 2, 3]),
        [0, 1, 2, 3],
    )
    for size in (8, 3, 1):
        yield f"batches of {size}", "batch", here(batch=size), everyone
    yield "another process", "process", lambda: draw_elsewhere(base), everyone
    if short:
        return
    if on_cpu:
        yield "two threads", "machine", lambda: draw_elsewhere(replace(base, threads=2)), everyone
        yield ("AVX2 in place of this CPU's instructions", "machine", lambda: draw_elsewhere(base, OLDER_CPU), everyone)
        yield "without oneDNN", "machine", without_onednn, everyone
    else:
        yield "on the CPU", "machine", here(device="cpu"), everyone
    yield "parity=True", "arithmetic", here(parity=True), everyone
    for dtype in ("float16", "bfloat16"):
        yield dtype, "arithmetic", here(dtype=dtype), everyone


def compared(a: Drawn, b: Drawn) -> dict[str, Any]:
    """How much `b` differs from `a`, image by image."""
    gap = np.abs(a.latents - b.latents).reshape(len(a.latents), -1)
    levels = np.abs(a.pictures.astype(int) - b.pictures.astype(int)).reshape(len(a.pictures), -1)
    return {
        "n": len(gap),
        "equal_latents": int((gap.max(1) == 0).sum()),
        "largest_latent_difference": float(f"{gap.max():.4g}"),
        "rms_latent_difference": float(f"{np.sqrt((gap**2).mean()):.4g}"),
        "equal_pictures": int((levels.max(1) == 0).sum()),
        "largest_level_difference": int(levels.max()),
        "share_of_values_changed": float(f"{(levels > 0).mean():.4g}"),
    }


def measure(base: Setting, schedulers: tuple[str, ...], short: bool = False) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    models: dict[Any, Any] = {}
    for scheduler in schedulers:
        mine = replace(base, scheduler=scheduler)
        reference = draw(mine, models)
        for name, kind, drawn, chosen in variations(mine, models, short):
            row = {"variation": name, "kind": kind, "scheduler": scheduler, **compared(reference.at(chosen), drawn())}
            print(
                f"{scheduler:9} {name:45} {row['equal_latents']}/{row['n']} {row['largest_latent_difference']:.2g}",
                flush=True,
            )
            rows.append(row)
    if base.model == "emoji" and "euler_a" in schedulers and not short:
        half = len(base.seeds) // 2
        whole, part = pipeline(base, len(base.seeds)).at(list(range(half))), pipeline(base, half)
        name = f"diffusers' pipeline, one generator: batch of {half}"
        rows.append({"variation": name, "kind": "batch", "scheduler": "euler_a", **compared(whole, part)})
    return rows


def machine() -> dict[str, Any]:
    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = found[0] if found else name
    return {
        "cpu": name,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return child(*sys.argv[2:4])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one scheduler that draws noise, 5 steps, 8 seeds")
    parser.add_argument("--model", default="emoji", help="a zoo name, a directory in diffusers layout, or a hub id")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    base = Setting(model=args.model, device=args.device, steps=args.steps or (5 if args.short else 20))
    if args.short:
        base = replace(base, seeds=base.seeds[:8])
    began = time.perf_counter()
    rows = measure(base, ("euler_a",) if args.short else SCHEDULERS, args.short)
    told = {"base": {**asdict(base), "scheduler": None}, "machine": machine(), "rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} comparisons in {time.perf_counter() - began:.0f} s: {args.out / 'results.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

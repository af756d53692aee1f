"""Time per step outside the model: the project's loop against the diffusers pipeline, side by side in one run.

    python benchmarks/loop.py [--schedulers ddim euler dpmpp_2m ddpm] [--steps 50 400] [--rounds 15]

The network is a stub that hands back a stored tensor, so that what is left is the loop: scheduler, guidance, batching, hooks. A
round times both sides at 10 steps and at 10 more than ``--steps``; the difference, divided by ``--steps``, is the time per step
without start-up. Rounds alternate which side goes first. One thread, and its CPU time: what others do on the machine meanwhile is
not counted, on either side. The pipeline's progress bar is off.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from research import Hook, LoopSampler, load_model
from research.guidance import CFG
from research.solvers import resolve
from research.tasks import TextToImage

SHORT = 10


class IdleHook(Hook):
    """Overrides no point, as a recorder that is switched off."""


class BusyIdleHook(Hook):
    """Overrides every point of a stage and does nothing there."""

    def pre_step(self, state):
        return None

    def post_guidance(self, state):
        return None

    def post_step(self, state):
        return None


class StubUNet(UNet2DConditionModel):
    """Answers at once with stored numbers of the shape of its input."""

    def forward(self, sample, timestep, *args, **kwargs):
        if getattr(self, "_stored", None) is None or self._stored.shape != sample.shape:
            self._stored = torch.randn(sample.shape, generator=torch.Generator().manual_seed(0))
        return (self._stored,)


def save_tiny_pipeline(directory: Path) -> None:
    """A Stable Diffusion layout with latents 4 x 8 x 8 and random weights."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: index for index, word in enumerate(words)}
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), mid_block_type=None,
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1,
        max_position_embeddings=16, bos_token_id=vocab["<|startoftext|>"], eos_token_id=vocab["<|endoftext|>"],
    )  # fmt: skip
    StableDiffusionPipeline(
        unet=unet,
        vae=AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
                          up_block_types=("UpDecoderBlock2D",) * 2),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                                set_alpha_to_one=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(directory)  # fmt: skip


def seconds(call: Callable[[int], object], steps: int) -> float:
    start = time.thread_time()
    call(steps)
    return time.thread_time() - start


def per_step(call: Callable[[int], object], steps: int) -> float:
    """Microseconds a step, start-up taken out."""
    short = seconds(call, SHORT)
    return (seconds(call, SHORT + steps) - short) / steps * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedulers", nargs="+", default=["ddim", "euler", "euler_a", "dpmpp_2m", "ddpm", "unipc"])
    parser.add_argument("--steps", nargs="+", type=int, default=[50, 400])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()

    with TemporaryDirectory() as folder:
        save_tiny_pipeline(Path(folder))
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
        model = load_model(folder, device="cpu")
    stub = StubUNet.from_config(pipeline.unet.config).eval()
    pipeline.unet, model.unet = stub, stub
    pipeline.set_progress_bar_config(disable=True)
    base = pipeline.scheduler.config
    print(
        f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}, diffusers {diffusers.__version__}"
    )
    print(
        f"latents 4x8x8, CFG {arguments.scale:g}, stub model, {arguments.rounds} paired rounds; microseconds a step (median)"
    )
    print(f"{'scheduler':<12} {'steps':>5} {'pipeline':>9} {'loop':>9} {'ratio':>7} {'with hooks':>11} {'ratio':>7}")

    rows = []
    for name in arguments.schedulers:
        spec = resolve(name)
        pipeline.scheduler = getattr(diffusers, spec.class_name).from_config(base, **spec.options)

        def theirs(steps: int) -> object:
            return pipeline(
                "a", num_inference_steps=steps, guidance_scale=arguments.scale, output_type="latent",
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip

        def ours(steps: int, hooks: tuple = (IdleHook(),), name: str = name) -> object:
            sampler = LoopSampler(model, scheduler=name, guidance=CFG(arguments.scale), hooks=hooks)
            return sampler.sample(TextToImage("a"), seeds=[0], steps=steps, progress=False)

        def busy(steps: int) -> object:
            return ours(steps, hooks=(BusyIdleHook(),) * 3)

        calls = {"pipeline": theirs, "loop": ours, "busy": busy}
        for steps in arguments.steps:
            for call in calls.values():
                call(SHORT), call(SHORT + steps)
            times: dict[str, list[float]] = {key: [] for key in calls}
            for round_ in range(arguments.rounds):
                for key in calls if round_ % 2 else reversed(calls):
                    times[key].append(per_step(calls[key], steps))
            median = {key: statistics.median(values) for key, values in times.items()}
            ratio = {
                key: statistics.median(a / b for a, b in zip(times[key], times["pipeline"], strict=True))
                for key in ("loop", "busy")
            }
            print(
                f"{name:<12} {steps:>5} {median['pipeline']:>9.0f} {median['loop']:>9.0f} {ratio['loop']:>7.2f} "
                f"{median['busy']:>11.0f} {ratio['busy']:>7.2f}"
            )
            rows.append({"scheduler": name, "steps": steps, "microseconds": median, "ratio": ratio})
    mean = statistics.geometric_mean(row["ratio"]["loop"] for row in rows)
    print(
        f"geometric mean of the loop's ratios: {mean:.2f}; the largest: {max(row['ratio']['loop'] for row in rows):.2f}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()

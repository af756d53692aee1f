"""The loop all stages share: AdamW on a cosine, EMA, gradient clipping, progress bar, pictures, and exact resume.

A run interrupted at any moment (kill -9 included) continues from its last checkpoint as if nothing had happened:
weights, EMA, optimizer and the one random generator that every draw comes from are all in the checkpoint, which is
replaced atomically.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

# the loss of a batch, or parts of the batch whose losses add up to it: each is computed in a thread of its own
Parts = list[Callable[[], Tensor]]
# networks of diffusers and transformers pass through untyped: what they return is theirs to say
Loss = Callable[[Any, torch.Generator], Tensor | Parts]
Draw = Callable[[Any, Path], None]


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one stage.  `steps` is part of the cosine, so a resumed run keeps the checkpoint's."""

    steps: int
    lr: float
    seed: int
    lr_end: float = 0.0  # as a fraction of lr
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    autocast: bool = True  # bfloat16 for the forward pass; weights, optimizer and EMA stay float32
    checkpoint_seconds: float = 120.0
    picture_seconds: float = 300.0

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine that reaches `lr_end` at the last step."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * step / max(1, self.steps)))
        return self.lr * warm * (self.lr_end + (1 - self.lr_end) * cosine)

    def ema_decay(self, step: int) -> float:
        return min(self.ema, (1 + step) / (10 + step))


def atomic_save(state: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".tmp")
    with scratch.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def load_checkpoint(work: Path, stage: str) -> dict | None:
    path = checkpoint_path(work, stage)
    return torch.load(path, weights_only=True, map_location="cpu") if path.is_file() else None


def checkpoint_path(work: Path, stage: str) -> Path:
    return Path(work) / f"{stage}.pt"


def load_ema(module: Any, work: Path, stage: str) -> Any:
    """Fills a module with the EMA weights of a stage's checkpoint, finished or not; frozen, in eval mode."""
    state = load_checkpoint(work, stage)
    if state is None:
        raise FileNotFoundError(f"no checkpoint of stage {stage!r} in {work}: train it first")
    module.load_state_dict(state["ema"], strict=False)
    return module.eval().requires_grad_(False)


def fit(stage: str, module: Any, loss: Loss, recipe: Recipe, work: Path, *, on_picture: Draw | None = None) -> float:
    """Trains (or goes on training) one stage; returns the mean loss of its last 5 %.

    `loss(module, generator)` draws its batch from the generator and nothing else (parts that it returns draw nothing).
    `on_picture(module, path)` is
    called with the EMA weights in place every `picture_seconds`.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, foreach=True
    )
    ema = {name: p.detach().clone() for name, p in trained.items()}
    start, losses, seconds = 0, [], 0.0
    state = load_checkpoint(work, stage)
    if state is not None:
        if state["steps"] != recipe.steps:
            print(f"{stage}: {state['steps']} steps planned in the checkpoint, {recipe.steps} now: the cosine changes")
        module.load_state_dict(state["module"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        ema = state["ema"]
        start, losses, seconds = state["step"], state["losses"], state["seconds"]
    else:
        torch.manual_seed(recipe.seed)

    def checkpoint(step: int) -> None:
        """Everything a resumed run needs to go on bit for bit."""
        state = {
            "steps": recipe.steps,
            "step": step,
            "module": {name: p.detach() for name, p in trained.items()},
            "ema": ema,
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "losses": losses,
            "seconds": seconds + time.monotonic() - began,
        }
        atomic_save(state, checkpoint_path(work, stage))

    module.train()
    began = saved = pictured = time.monotonic()
    bar = tqdm(total=recipe.steps, initial=start, desc=stage, mininterval=1.0, dynamic_ncols=True)
    for step in range(start, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast):
            value = loss(module, generator)
        if isinstance(value, list):
            value = _backward(value, list(trained.values()), recipe.autocast)
        else:
            value.backward()
        nn.utils.clip_grad_norm_(trained.values(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        averaged = list(ema.values())
        torch._foreach_lerp_(averaged, [p.detach() for p in trained.values()], 1 - recipe.ema_decay(step))
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"{stage}: the loss is {losses[-1]} at step {step}")
        bar.update()
        if step % 20 == 0:
            recent = losses[-100:]
            bar.set_postfix(loss=f"{sum(recent) / len(recent):.4f}", lr=f"{recipe.rate(step):.1e}")
        now = time.monotonic()
        if now - saved >= recipe.checkpoint_seconds:
            checkpoint(step + 1)
            saved = now
        if on_picture is not None and now - pictured >= recipe.picture_seconds:
            _picture(module, trained, ema, on_picture, Path(work) / f"{stage}.png")
            pictured = time.monotonic()
    bar.close()
    if start < recipe.steps:
        checkpoint(recipe.steps)
        if on_picture is not None:
            _picture(module, trained, ema, on_picture, Path(work) / f"{stage}.png")
    tail = losses[-max(1, len(losses) // 20) :]
    final = sum(tail) / len(tail)
    if start < recipe.steps:
        seconds += time.monotonic() - began
    summary = {"stage": stage, "steps": recipe.steps, "final_loss": round(final, 5), "seconds": round(seconds)}
    (Path(work) / f"{stage}.json").write_text(json.dumps(summary) + "\n")
    print(json.dumps(summary), flush=True)
    return final


def _backward(parts: Parts, trained: list[nn.Parameter], autocast: bool) -> Tensor:
    """Gradients of the parts' sum, each part forward and backward in a thread of its own; returns the sum.

    Threads meet once a step and not in every operation, which counts where other processes want the cores too.
    """

    def gradients(part: Callable[[], Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        torch.set_num_threads(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = part()
        return value.detach(), torch.autograd.grad(value, trained)

    with ThreadPoolExecutor(len(parts)) as pool:
        (total, sums), *others = pool.map(gradients, parts)
    for value, more in others:
        total = total + value
        torch._foreach_add_(list(sums), list(more))
    for p, gradient in zip(trained, sums, strict=True):
        p.grad = gradient
    return total


def _picture(
    module: Any, trained: dict[str, nn.Parameter], ema: dict[str, Tensor], on_picture: Draw, path: Path
) -> None:
    """Draws with the EMA weights; puts the raw weights and the random state back, so that drawing changes nothing."""
    raw = {name: p.detach().clone() for name, p in trained.items()}
    random_state = torch.get_rng_state()
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(ema[name])
        module.eval()
        on_picture(module, path)
        module.train()
        for name, p in trained.items():
            p.copy_(raw[name])
    torch.set_rng_state(random_state)

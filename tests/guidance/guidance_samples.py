"""What the tests of guidance share: stages of any noise level, predictions of any kind, and a guidance applied to them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from research.sampling import Guidance, Prediction, convert
from research.sampling.interfaces import Batch, Condition, Model, Run, StepState
from research.sampling.noise import NoiseSource
from research.sampling.prediction import KINDS, Kind
from research.sampling.timeline import Stage, Timeline

SHAPE = (2, 4, 8, 8)

kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 2**31 - 1)
# most of a variance-preserving schedule; `sigma` is noise / signal
log_sigmas = st.floats(math.log(0.02), math.log(50.0))
# odd and tiny latents too
shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 11), st.integers(1, 11))
scales = st.floats(-2.0, 15.0)


def stage_of(
    sigma: float = 1.0, *, kept: bool = True, index: int = 0, step: int | None = None, n_steps: int = 10
) -> Stage:
    """A stage with the noise level ``sigma``; ``kept``: variance-preserving, otherwise exploding (signal 1)."""
    signal = 1.0 / math.hypot(1.0, sigma) if kept else 1.0
    time = 999.0 * sigma / (1.0 + sigma)
    return Stage(
        index=index,
        step=index if step is None else step,
        n_steps=n_steps,
        t=torch.tensor(time),
        time=time,
        sigma=sigma,
        sigma_next=0.9 * sigma,
        log_snr=-2.0 * math.log(sigma),
        signal=signal,
        noise=sigma * signal,
        last_of_step=True,
    )


def normal(seed: int, shape: Sequence[int] = SHAPE, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers of a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(dtype)


class NoModel(Model):
    """What guidance asks of a model where nothing is evaluated."""

    name = path = "none"
    weights_sha256 = ""
    supports = frozenset({"text", "uncond"})
    dtype = torch.float32
    device = torch.device("cpu")


def run_of(n_images: int = SHAPE[0], *, guidance: Guidance | None = None, kind: Kind = "epsilon") -> Run:
    """A run with no model: conditions "cond" and "uncond", noise by image, and a task that makes conditions of sentences."""

    def condition(run: Run, texts: str | Sequence[str]) -> Condition:
        sentences = [texts] * len(run.rows) if isinstance(texts, str) else [texts[row] for row in run.rows]
        return Condition(embeds=torch.cat([normal(zlib.crc32(text.encode()), (1, 5, 6)).float() for text in sentences]))

    model = NoModel()
    solver: Any = SimpleNamespace(
        name="none", kind=kind, turn=None, supports=frozenset({"first-order", f"predicts:{kind}"})
    )
    task: Any = SimpleNamespace(
        name="none",
        prompts="a prompt",
        condition=condition,
        conditions=lambda run: {"cond": condition(run, "a prompt"), "uncond": condition(run, "")},
    )
    batch = Batch(
        model=model,
        solver=solver,
        guidance=Guidance() if guidance is None else guidance,
        task=task,
        seeds=tuple(range(n_images)),
        rows=tuple(range(n_images)),
        n_images=n_images,
        noise=NoiseSource(range(n_images)),
        timeline=Timeline((), n_steps=10),
    )
    return Run.begin(batch, x=torch.empty(0), denoiser=SimpleNamespace(), model_inputs=lambda state, inputs: inputs)


def state_of(
    stage: Stage | None = None,
    *,
    x: Tensor | None = None,
    seed: int = 0,
    shape: Sequence[int] = SHAPE,
    dtype: torch.dtype = torch.float64,
    guidance: Guidance | None = None,
    run: Run | None = None,
    kind: Kind = "epsilon",
) -> StepState:
    """A stage of a run, with latents of a seed if none are given."""
    stage = stage_of() if stage is None else stage
    x = normal(seed, shape, dtype) if x is None else x
    run = run_of(len(x), guidance=guidance, kind=kind) if run is None else run
    return StepState(run, stage, x)


def predictions_of(
    state: StepState, names: Sequence[str] = ("uncond", "cond"), *, seed: int = 1, kind: Kind = "epsilon"
) -> dict[str, Prediction]:
    """A random prediction a branch: random clean latents, said as ``kind``."""
    x = state.x_before
    return {
        name: convert(Prediction(normal(seed + 1000 * i, x.shape, x.dtype), "x0"), kind, x, state.stage)
        for i, name in enumerate(names)
    }


def converted(predictions: Mapping[str, Prediction], kind: Kind, state: StepState) -> dict[str, Prediction]:
    """The same predictions as another kind."""
    return {name: convert(p, kind, state.x_before, state.stage) for name, p in predictions.items()}


def x0_of(prediction: Prediction, state: StepState) -> Tensor:
    """The clean latents that a prediction implies."""
    return convert(prediction, "x0", state.x_before, state.stage).value


def guided_x0(
    guidance: Guidance, state: StepState, predictions: Mapping[str, Prediction], *, start: bool = True
) -> Tensor:
    """The clean latents that a guidance makes of predictions; it is given those of its branches alone, as in the loop."""
    if start:
        guidance.start(state.run)
    state.branches = guidance.branches(state)
    given = {branch.name: predictions[branch.name] for branch in state.branches}
    return x0_of(guidance.combine(state, given).prediction, state)


def relative(a: Tensor, b: Tensor) -> float:
    """How far apart two tensors are, relative to the second; 0 where they are equal."""
    return 0.0 if torch.equal(a, b) else float((a - b).norm() / b.norm().clamp_min(1e-12))

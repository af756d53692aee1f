"""Steps in closed form, for whoever walks a schedule in a way of their own (an inversion, a jump to another level)."""

from __future__ import annotations

import torch
from torch import Tensor

from research.sampling.interfaces import Guided
from research.sampling.prediction import Kind, Prediction, convert, of_pair, to_epsilon, to_x0
from research.sampling.timeline import Stage


def ddim_step(x: Tensor, prediction: Prediction, stage: Stage, signal_next: float, noise_next: float) -> Tensor:
    """The deterministic DDIM step (arXiv:2010.02502, eq. 12 with sigma = 0) to any other level, up or down.

    Args:
        x: latents [N, C, h, w] at the level of ``stage``.
        prediction: of any kind, shape of ``x``.
        stage: where ``x`` stands; its signal must not be 0 for an epsilon prediction.
        signal_next, noise_next: the level to go to; (1, 0) is clean. In the scaling of ``stage``.

    Returns:
        Latents at the new level, shape and dtype of ``x``; half precision is summed in fp32.
    """
    wide = Prediction(full_precision(prediction.value), prediction.kind)
    here = full_precision(x)
    clean = to_x0(wide, here, stage)
    if noise_next == 0.0:  # from x0 alone: at noise level 0 there is no epsilon to ask for
        return (signal_next * clean).to(x.dtype)
    return (signal_next * clean + noise_next * to_epsilon(wide, here, stage)).to(x.dtype)


def full_precision(x: Tensor) -> Tensor:
    """Half precision as fp32, anything wider as it is: sums of large terms lose the small ones."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def step_from(guided: Guided, kind: Kind, x: Tensor, stage: Stage) -> tuple[Prediction, Tensor]:
    """The prediction, of the kind that the scheduler takes, and the latents to step from: those given, unless guidance names a
    noise of its own to go along.

    Then these are the latents that x0 and this noise would make: a step without memory is a function of the two alone.
    """
    if guided.renoise is None:
        return convert(guided.prediction, kind, x, stage), x
    clean, epsilon = to_x0(guided.prediction, x, stage), to_epsilon(guided.renoise, x, stage)
    new = stage.signal * full_precision(clean) + stage.noise * full_precision(epsilon)
    return of_pair(clean, epsilon, kind, stage), new.to(x.dtype)

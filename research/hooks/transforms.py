"""Ready functions of the latents for `LatentTransform`. A cell is one place of the latents: mostly 4 or 8 pixels of the image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from research.arguments import Recorded
from research.checks import check_number, check_whole_number
from research.errors import ConfigError, SamplingError
from research.sampling.interfaces import Run, StepState
from research.sampling.noise import HOOK
from research.sampling.prediction import Prediction, to_x0
from research.sampling.timeline import Stage, Timeline


class Shift(Recorded):
    """Moves the latents by whole cells, and adds an offset to their channels.

    Args:
        dx, dy: cells to the right and downwards; negative ones go to the left and upwards.
        channels: what is added to the channels: one number for all, or a list with one a channel.
        edge: what comes in at the border: "wrap" (what went out at the other side) or "repeat" (the outermost cells).

    Raises:
        ConfigError: an argument is out of its range.
        SamplingError: the latents have another number of channels.
    """

    def __init__(self, dx: int = 0, dy: int = 0, channels: float | Sequence[float] = 0.0, edge: str = "wrap"):
        self.dx, self.dy = (
            check_whole_number(f"hooks.shift.{name}", value, least=-(2**31), accepted="a whole number of latent cells")
            for name, value in (("dx", dx), ("dy", dy))
        )
        listed = list(channels) if isinstance(channels, list | tuple) else [channels]
        self.channels = [check_number("hooks.shift.channels", value) for value in listed]
        if edge not in ("wrap", "repeat"):
            raise ConfigError(f"hooks.shift.edge: found {edge!r}; accepted are wrap and repeat.")
        self.edge = edge

    def __call__(self, latents: Tensor) -> Tensor:
        if self.dx or self.dy:
            for dim, by in ((-2, self.dy), (-1, self.dx)):
                latents = self._moved(latents, dim, by)
        if not any(self.channels):
            return latents
        if len(self.channels) not in (1, latents.shape[1]):
            raise SamplingError(
                f"hooks.shift.channels: found {len(self.channels)} numbers; accepted is one, or one for each of the "
                f"{latents.shape[1]} channels."
            )
        return latents + latents.new_tensor(self.channels).view(1, -1, 1, 1)

    def _moved(self, x: Tensor, dim: int, by: int) -> Tensor:
        if self.edge == "wrap":
            return x.roll(by, dim)
        last = x.shape[dim] - 1
        return x.index_select(dim, (torch.arange(last + 1, device=x.device) - by).clamp(0, last))


class Flip(Recorded):
    """Mirrors the latents.

    Args:
        horizontal: left becomes right.
        vertical: top becomes bottom.

    Raises:
        ConfigError: neither is asked for.
    """

    def __init__(self, horizontal: bool = True, vertical: bool = False):
        self.dims = [dim for dim, asked in ((-1, horizontal), (-2, vertical)) if asked]
        if not self.dims:
            raise ConfigError("hooks.flip: found neither horizontal nor vertical; accepted is at least one of them.")

    def __call__(self, latents: Tensor) -> Tensor:
        return latents.flip(self.dims)


class Blur(Recorded):
    """A Gaussian blur of the latents, the noise in them included: less noise is left than the model is told, and so less detail.

    Args:
        sigma: the Gaussian's standard deviation in cells, from 0 (no blur). The outermost cells are repeated beyond the border.

    Raises:
        ConfigError: sigma is no number from 0.
    """

    def __init__(self, sigma: float = 1.0):
        self.sigma = check_number("hooks.blur.sigma", sigma, least=0.0)

    def __call__(self, latents: Tensor) -> Tensor:
        if self.sigma == 0.0:
            return latents
        radius = math.ceil(3.0 * self.sigma)
        places = torch.arange(-radius, radius + 1, device=latents.device, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (places / self.sigma).square())
        kernel = kernel / kernel.sum()
        n, channels, height, width = latents.shape
        x = latents.float().reshape(n * channels, 1, height, width)
        x = torch.nn.functional.pad(x, (radius,) * 4, mode="replicate")
        x = torch.nn.functional.conv2d(x, kernel.view(1, 1, -1, 1))
        x = torch.nn.functional.conv2d(x, kernel.view(1, 1, 1, -1))
        return x.reshape(latents.shape).to(latents.dtype)


class NoiseReinjection(Recorded):
    """Replaces a part of the noise in the latents by fresh noise; the level stays the stage's.

    With latents ``x = a * x0 + b * epsilon``, ``x0`` as it was estimated at the stage before, they become
    ``a * x0 + b * (sqrt(1 - amount^2) * epsilon + amount * z)``: the share of fresh noise that DDIM's ``eta`` sets
    (arXiv:2010.02502, eq. 12), with any scheduler and in any part of the steps. Before the first estimate ``epsilon`` is the
    noise that the start latents were made of; a task that starts from no noise leaves the first stage as it is.

    Args:
        amount: from 0 (the latents as they are) to 1 (all noise is fresh).
        stream: the name of its noise stream. Two in one job that share a stream draw from it in turn.

    Raises:
        ConfigError: the amount is out of range, or the scheduler's noise levels are not known (IPNDM).
    """

    requires = frozenset({"noise-levels"})

    def __init__(self, amount: float = 0.5, stream: str = "noise_reinjection"):
        self.amount = check_number("hooks.noise_reinjection.amount", amount, least=0.0, most=1.0)
        self.stream = f"{HOOK}/{stream}"
        self._last: tuple[Prediction, Tensor, Stage] | None = None
        self._timeline: Timeline | None = None

    def on_start(self, run: Run) -> None:
        self._last, self._timeline = None, run.timeline

    def memory(self) -> dict[str, Any]:
        if self._last is None:
            return {"last": None}
        prediction, x, stage = self._last
        return {"last": {"value": prediction.value, "kind": prediction.kind, "x": x, "stage": stage.index}}

    def remember(self, memory: Mapping[str, Any]) -> None:
        if (last := memory["last"]) is None or self._timeline is None:
            self._last = None
        else:
            self._last = Prediction(last["value"], last["kind"]), last["x"], self._timeline[last["stage"]]

    def post_guidance(self, state: StepState) -> None:
        self._last = (state.guided.prediction, state.x_before, state.stage)

    def __call__(self, latents: Tensor, state: StepState) -> Tensor:
        a, b = state.stage.signal, state.stage.noise
        if b == 0.0:  # clean latents, where an inversion begins
            return latents
        epsilon = self._epsilon(latents.float(), a, b, state)
        if self.amount == 0.0 or epsilon is None:
            return latents
        fresh = state.run.noise.draw(self.stream, latents.shape[1:], torch.float32)
        change = (math.sqrt(1.0 - self.amount**2) - 1.0) * epsilon + self.amount * fresh
        return (latents.float() + b * change).to(latents.dtype)

    def _epsilon(self, x: Tensor, a: float, b: float, state: StepState) -> Tensor | None:
        if self._last is None:
            start = state.run.start_noise
            return None if start is None else start.float()
        prediction, x_then, then = self._last
        clean = to_x0(Prediction(prediction.value.float(), prediction.kind), x_then.float(), then)
        return (x - a * clean) / b

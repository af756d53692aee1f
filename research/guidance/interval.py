"""Guidance in a part of the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real

from research.checks import check_choice
from research.errors import ConfigError
from research.guidance.modifier import Modifier
from research.guidance.wrapping import Wrapping
from research.sampling.interfaces import Batch, Branch, Guidance, Guided, StepState
from research.sampling.prediction import Prediction
from research.sampling.timeline import Stage, log_snr_of, noise_level

_KEY = "guidance.modifiers.interval"


class Interval(Modifier):
    """Guidance inside a window, and none outside it (limited interval, Kynkäänniemi et al., arXiv:2404.07724, eq. 5).

    Outside, only the conditional prediction is evaluated. The window is counted in the user's steps and never in model
    evaluations: all stages of a step of a second-order scheduler are in it or out of it, as the step's first stage is. In an
    inversion a step is in it or out of it on both ways, as it is coming from the noise.

    Args:
        guidance: what is limited.
        steps: fractions of the user's steps, ``0 <= lo < hi <= 1``: step ``k`` of ``n``, counted from 0, is inside if
            ``lo <= k / n < hi``.
        log_snr: or levels ``log(signal^2 / noise^2)``, inside if ``lo <= log_snr < hi``.
        sigma: or noise levels ``noise / signal``, for models that predict flow the flow time from 1 to 0; inside if
            ``lo < sigma <= hi``.
        outside: "none", or "base": what the guidance adds to (``PAG(3, base=CFG(5))`` is CFG outside).

    Raises:
        ConfigError: none or several windows are given, lo >= hi, or a bound is out of range.
    """

    def __init__(
        self,
        guidance: Guidance,
        steps: Sequence[float] | None = None,
        log_snr: Sequence[float] | None = None,
        sigma: Sequence[float] | None = None,
        outside: str = "none",
    ):
        super().__init__(guidance)
        windows = {"steps": steps, "log_snr": log_snr, "sigma": sigma}
        given = [name for name, window in windows.items() if window is not None]
        if len(given) != 1:
            raise ConfigError(
                f"{_KEY}: found {' and '.join(given) or 'no window'}; accepted is one of steps, log_snr and sigma."
            )
        check_choice(f"{_KEY}.outside", outside, ("none", "base"))
        self.axis = given[0]
        self.low, self.high = _bounds(self.axis, windows[self.axis])
        self._base = guidance.guidance if outside == "base" and isinstance(guidance, Wrapping) else None
        self.elsewhere = self._base or Guidance()

    def vectorises(self) -> bool:
        return self.guidance.vectorises()

    def start(self, run: Batch) -> None:
        super().start(run)
        if self._base is None:  # the base is started by the guidance that adds to it
            self.elsewhere.start(run)
        self._steps: dict[int, bool] = {}  # by the user's step: whether it is inside
        if len(run.timeline) and not any(self._inside(run, stage) for stage in run.timeline.stages):
            run.warn(f"{_KEY}.{self.axis}: [{self.low:g}, {self.high:g}] holds none of the steps; nothing is guided.")

    def differentiates(self, state: StepState) -> bool:
        return self._now(state).differentiates(state)

    def stands_still(self, state: StepState) -> bool:
        return self._now(state).stands_still(state)

    def branches(self, state: StepState) -> Sequence[Branch]:
        return self._now(state).branches(state)

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        return self._now(state).combine(state, predictions)

    def _now(self, state: StepState) -> Guidance:
        return self.guidance if self._inside(state.run, state.stage) else self.elsewhere

    def _inside(self, run: Batch, stage: Stage) -> bool:
        if stage.step not in self._steps:
            self._steps[stage.step] = self._holds(run, stage)
        return self._steps[stage.step]

    def _holds(self, run: Batch, stage: Stage) -> bool:
        """Whether the noisier end of a stage's way is inside: its beginning, but for a way back to the noise."""
        if self.axis == "steps":
            return self.low <= stage.step / stage.n_steps < self.high
        sigma, log_snr = stage.sigma, stage.log_snr
        if run.going_back(stage):
            after = stage.index + 1
            level = run.timeline[after] if after < len(run.timeline) else None
            signal, noise = (level.signal, level.noise) if level else run.solver.end_level
            sigma, log_snr = noise_level(signal, noise, run.solver.kind), log_snr_of(signal, noise)
        return self.low < sigma <= self.high if self.axis == "sigma" else self.low <= log_snr < self.high


def _bounds(axis: str, window: Sequence[float] | None) -> tuple[float, float]:
    low, high = {"steps": (0.0, 1.0), "sigma": (0.0, math.inf), "log_snr": (-math.inf, math.inf)}[axis]
    accepted = f"two numbers lo < hi from {low:g} to {high:g}"
    try:
        numbers = [] if isinstance(window, str) else list(window or ())
    except TypeError:
        numbers = []
    right = len(numbers) == 2 and all(isinstance(n, Real) and not isinstance(n, bool) for n in numbers)
    if not right or not low <= numbers[0] < numbers[1] <= high:
        raise ConfigError(f"{_KEY}.{axis}: found {window!r}; accepted are {accepted}.")
    return float(numbers[0]), float(numbers[1])

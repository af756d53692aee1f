"""Grids of flow models: times that are shifted towards noise, by a number or by the size of the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

from research.checks import check_choice, check_number, check_whole_number
from research.errors import ConfigError
from research.sigmas.grid import as_levels, check_end, check_steps, shares
from research.solvers.levels import Levels, TrainedLevels


@dataclass(frozen=True)
class FlowShift:
    """Even times, shifted: ``t -> shift * t / (1 + (shift - 1) * t)`` (Stable Diffusion 3, arXiv:2403.03206, eq. 23), as the
    `FlowMatchEulerDiscreteScheduler` of diffusers.

    With ``height`` and ``width`` the shift follows the size, as in Flux: ``shift = exp(mu)``, ``mu`` linear in the number of the
    transformer's patches from ``base_shift`` at ``base_seq_len`` to ``max_shift`` at ``max_seq_len``.

    Args:
        shift: above 0; 1 is no shift, None the model's own.
        height, width: of the picture in pixels; both or none. Then ``shift`` must be None.
        base_shift, max_shift: of ``mu``.
        base_seq_len, max_seq_len: patches.
        patch: pixels along the side of a patch: 8 of the VAE times 2 of the transformer.
        spacing: "linspace" is even from 1 to the smallest time, "trailing" (what Flux' pipeline gives) from 1 by ``1 / n``.
        terminal: stretch the times so that the last before the end is this one, as LTX-Video does (0.1); None leaves them.
        end: "zero" puts 0 after the smallest time; with "smallest" the last step ends at the smallest time.

    Raises:
        ConfigError: an option out of its range; when levels are asked for, a model that does not predict flow.
    """

    shift: float | None = None
    height: int | None = None
    width: int | None = None
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_seq_len: int = 256
    max_seq_len: int = 4096
    patch: int = 16
    spacing: str = "linspace"
    terminal: float | None = None
    end: str = "zero"

    def __post_init__(self) -> None:
        if self.shift is not None:
            check_number("sigmas.shift", self.shift, above=0.0, otherwise="null, the model's own")
        if (self.height is None) != (self.width is None):
            raise ConfigError("sigmas.height: found one of height and width; accepted are both or none.")
        if self.height is not None:
            if self.shift is not None:
                raise ConfigError(f"sigmas.shift: found {self.shift:g} with a size; accepted is one of them.")
            for key, side in (("height", self.height), ("width", self.width)):
                check_whole_number(f"sigmas.{key}", side, least=1)
        check_number("sigmas.base_shift", self.base_shift)
        check_number("sigmas.max_shift", self.max_shift)
        check_whole_number("sigmas.patch", self.patch, least=1)
        check_whole_number("sigmas.base_seq_len", self.base_seq_len, least=1)
        check_whole_number("sigmas.max_seq_len", self.max_seq_len, least=self.base_seq_len + 1)
        check_choice("sigmas.spacing", self.spacing, ("linspace", "trailing"))
        if self.terminal is not None:
            check_number("sigmas.terminal", self.terminal, above=0.0, below=1.0, otherwise="null")
        check_end(self.end)

    def levels(self, trained: TrainedLevels, steps: int) -> Levels:
        """See `research.solvers.levels.Schedule`."""
        if not trained.flow:
            raise ConfigError(
                "sigmas: FlowShift shifts the times of a flow model; this model predicts noise. Accepted are the other grids."
            )
        check_steps(steps)
        shift = self._shift(trained)
        # as diffusers has it: the smallest time is shifted before the times are laid, and with them once more
        least = 1.0 / trained.n_timesteps
        low = least if self.height is not None else _shifted(least, shift)
        if self.spacing == "linspace":
            times = [1.0 + share * (low - 1.0) for share in shares(steps, self.end)]
        else:
            times = [1.0 - i / steps for i in range(steps)]
            if self.end == "smallest":
                times = [1.0 - i / steps * (1.0 - least) for i in range(steps + 1)]
        found = [_shifted(time, shift) for time in times]
        if self.terminal is not None and len(found) > 1:
            factor = (1.0 - found[-1]) / (1.0 - self.terminal)
            found = [1.0 - (1.0 - time) / factor for time in found]
        return as_levels("FlowShift", found, trained, self.end)

    def _shift(self, trained: TrainedLevels) -> float:
        if self.height is None or self.width is None:
            return trained.shift if self.shift is None else self.shift
        patches = (self.height // self.patch) * (self.width // self.patch)
        slope = (self.max_shift - self.base_shift) / (self.max_seq_len - self.base_seq_len)
        return math.exp(self.base_shift + slope * (patches - self.base_seq_len))


def _shifted(time: float, shift: float) -> float:
    return shift * time / (1.0 + (shift - 1.0) * time)

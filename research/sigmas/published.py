"""Grids that were found for a model and published as tables."""

from __future__ import annotations

import math
from dataclasses import dataclass

from research.checks import check_choice
from research.errors import ConfigError
from research.sigmas.grid import as_levels, between, check_end, check_steps, known
from research.solvers.levels import Levels, TrainedLevels

# the ten-step tables of NVIDIA's page on Align Your Steps, largest level first; after the last comes the end
_TABLES = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


@dataclass(frozen=True)
class AYS:
    """Align Your Steps (Sabour et al., arXiv:2404.14507): levels optimised for a model, ten steps; other counts lie between them,
    linear in log-sigma, as the authors' page has it.

    The first level is the model's largest where that is larger than the table's, since the run begins with noise alone.

    Args:
        model: for which the table was found: sd15, sdxl or svd.
        end: "zero", or "smallest", the last number of the table.

    Raises:
        ConfigError: an option that there is not; when levels are asked for, a flow model, or one that does not know the table's
            levels.
    """

    model: str = "sd15"
    end: str = "zero"

    def __post_init__(self) -> None:
        check_choice("sigmas.model", self.model, tuple(_TABLES))
        check_end(self.end)

    def levels(self, trained: TrainedLevels, steps: int) -> Levels:
        """See `research.solvers.levels.Schedule`."""
        if trained.flow:
            raise ConfigError(
                "sigmas: AYS has levels that were found for models that predict noise; this model predicts flow. Accepted are "
                "the other grids."
            )
        table = _TABLES[self.model]
        if table[0] > trained.sigma_max * 1.01:
            raise ConfigError(
                f"sigmas.model: found {self.model!r}, whose table begins at {table[0]:g}; this model knows {known(trained)}; "
                "accepted are tables within that."
            )
        sigmas = between(table, check_steps(steps) + 1)
        from_noise_alone = trained.sigma_max == math.inf
        sigmas[0] = sigmas[0] if from_noise_alone else max(sigmas[0], trained.sigma_max)
        sigmas[-1] = max(sigmas[-1], trained.sigma_min)
        kept = sigmas[:-1] if self.end == "zero" else sigmas
        return as_levels("AYS", kept, trained, self.end, from_noise_alone=from_noise_alone)

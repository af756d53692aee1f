"""Grids that somebody gives: a list of sigmas or timesteps, or a file that holds one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from research.checks import check_whole_number
from research.errors import ConfigError
from research.sigmas.grid import (
    as_levels,
    between,
    check_end,
    check_sigmas,
    check_steps,
    finished,
    largest_finite,
    smallest,
)
from research.solvers.levels import Levels, TrainedLevels


@dataclass(frozen=True)
class Given:
    """The levels of a list, as the ``sigmas=`` and ``timesteps=`` of diffusers' pipelines.

    Args:
        sigmas: falling levels, one a step: 0 comes after the last. A last 0 may be given too, and is then the end.
        timesteps: falling timesteps of the model in their place, one a step; the clean end comes after the last.
        end: with "smallest" nothing comes after the last level given, and the last step ends there; so it is one more than
            there are steps.

    Raises:
        ConfigError: both or none, no list of numbers; when levels are asked for, another number of steps, levels that rise, come
            twice, or that the model does not know.
    """

    sigmas: Sequence[float] | None = None
    timesteps: Sequence[float] | None = None
    end: str = "zero"

    def __post_init__(self) -> None:
        check_end(self.end)
        if (self.sigmas is None) == (self.timesteps is None):
            found = "neither" if self.sigmas is None else "both"
            raise ConfigError(f"sigmas: found {found} of sigmas and timesteps; accepted is one list.")
        key = "timesteps" if self.sigmas is None else "sigmas"
        values = self.timesteps if self.sigmas is None else self.sigmas
        object.__setattr__(self, key, numbers(f"sigmas.{key}", values))
        if self.steps < 1:
            raise ConfigError(
                f"sigmas.{key}: found {list(values or ())}, which is no step; accepted are two levels or more, the end counted."
            )

    @property
    def name(self) -> str:
        return "the list"

    @property
    def steps(self) -> int:
        """How many steps the list has."""
        if self.timesteps is not None:
            return len(self.timesteps) - (self.end == "smallest")
        values = self.sigmas or ()
        return len(values) - (self.end == "smallest" or (len(values) > 0 and values[-1] == 0))

    def levels(self, trained: TrainedLevels, steps: int) -> Levels:
        """See `research.solvers.levels.Schedule`."""
        if check_steps(steps) != self.steps:
            raise ConfigError(f"steps: found {steps} with {self.name} of {self.steps} steps; accepted is {self.steps}.")
        if self.sigmas is not None:
            check_sigmas(self.name, self.sigmas, trained)
            if self.sigmas[-1] == 0:
                return as_levels(self.name, self.sigmas[:-1], trained, "zero")
            return as_levels(self.name, self.sigmas, trained, self.end)
        timesteps = self.timesteps or ()
        most = trained.n_timesteps if trained.flow else trained.n_timesteps - 1
        for i, time in enumerate(timesteps):
            if not (0 if not trained.flow else 1e-9) <= time <= most:
                raise ConfigError(
                    f"sigmas.timesteps[{i}]: found {time:g}; accepted are timesteps of the model, {int(trained.flow)} to {most}."
                )
        return finished(self.name, [trained.at_time(time) for time in timesteps], trained, self.end)


@dataclass(frozen=True, eq=False)
class File:
    """The levels of a YAML file, as ``research-sigmas`` writes it: ``sigmas:`` or ``timesteps:``, ``end:``, and their origin.

    Args:
        path: of the file.

    Raises:
        ConfigError: it cannot be read or holds no levels; else as `Given`.
    """

    path: str
    given: ClassVar[Given]  # the list of the file, as it was when this was made

    def __post_init__(self) -> None:
        object.__setattr__(self, "given", self._read())

    def __eq__(self, other: object) -> bool:
        # a file may have been written anew since
        return isinstance(other, File) and (self.path, self.given) == (other.path, other.given)

    def __hash__(self) -> int:
        return hash((self.path, self.given))

    def _read(self) -> Given:
        import yaml

        try:
            content: Any = yaml.safe_load(Path(self.path).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise ConfigError(f"sigmas.path: {self.path} cannot be read: {reason}.") from error
        if not isinstance(content, Mapping) or not ("sigmas" in content or "timesteps" in content):
            raise ConfigError(f"sigmas.path: {self.path} holds no levels; accepted is a file with a list sigmas.")
        return Given(content.get("sigmas"), content.get("timesteps"), content.get("end", "zero"))

    @property
    def steps(self) -> int:
        """How many steps the file's list has."""
        return self.given.steps

    def levels(self, trained: TrainedLevels, steps: int) -> Levels:
        """See `research.solvers.levels.Schedule`."""
        if check_steps(steps) != self.steps:
            raise ConfigError(f"steps: found {steps} with {self.path} of {self.steps} steps; accepted is {self.steps}.")
        return self.given.levels(trained, steps)


@dataclass(frozen=True)
class Between:
    """A list of levels at other counts of steps than its own: places spread evenly over the list, linear in log-sigma between two
    levels, for flow in log-time. It begins and ends where the list does; before an end at zero comes the smallest level.

    Args:
        given: the list, or the file that holds it.
    """

    given: Given | File

    def levels(self, trained: TrainedLevels, steps: int) -> Levels:
        """See `research.solvers.levels.Schedule`."""
        own = self.given.levels(trained, self.given.steps)
        found = [level.sigma for level in own]
        ends_clean = found[-1] == 0
        if ends_clean:
            found[-1] = min(smallest(trained), found[-2] * 0.999)
        from_noise_alone = found[0] == math.inf
        if from_noise_alone:
            found[0] = largest_finite(trained)
        sigmas = between(found, check_steps(steps) + 1)
        kept, end = (sigmas[:-1], "zero") if ends_clean else (sigmas, "smallest")
        return as_levels("the list", kept, trained, end, from_noise_alone=from_noise_alone)


def as_schedule(sigmas: Any) -> Any:
    """A list, array or tensor of sigmas as the grid of these levels; anything else as it is.

    Raises:
        ConfigError: see `Given`.
    """
    if isinstance(sigmas, str | bytes | Mapping) or not (isinstance(sigmas, Sequence) or hasattr(sigmas, "tolist")):
        return sigmas
    return Given(sigmas)


def numbers(key: str, values: Any) -> tuple[float, ...]:
    """A list of numbers as a tuple.

    Raises:
        ConfigError: no list, or something in it is no number, NaN or negative.
    """
    tolist = getattr(values, "tolist", None)  # of tensors and arrays
    found = tolist() if callable(tolist) else values
    if isinstance(found, str | bytes | Mapping) or not isinstance(found, Sequence):
        raise ConfigError(f"{key}: found {found!r}; accepted is a list of numbers.")
    for i, value in enumerate(found):
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value < 0:
            raise ConfigError(f"{key}[{i}]: found {value!r}; accepted is a number from 0.")
    check_whole_number(key, len(found), least=1, accepted="a list of one number or more")
    return tuple(float(value) for value in found)

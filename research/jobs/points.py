"""The points of a sweep: axes, which of them go together, which points are left out, and how many are drawn."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hydra.core.override_parser.types import Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from research.errors import ConfigError
from research.jobs import overrides as lines_of
from research.jobs.compose import Composer, explained
from research.jobs.exclusion import MISSING, Lookup, Rules, select
from research.jobs.point_files import read_points
from research.jobs.schema import OF_SWEEPS
from research.jobs.sweep_settings import SweepSettings, settings_of

_log = logging.getLogger(__name__)
_LISTED = 1_000_000  # values of an axis, or points, that are gone through one by one


@dataclass
class Axis:
    """What varies by itself: the values of a key, or rows of values of several keys that go together."""

    keys: tuple[str, ...]  # as a person writes them
    rows: Sequence[tuple[str, ...]]  # overrides, one a key

    @property
    def name(self) -> str:
        return " and ".join(self.keys)


class _Numbers(Sequence[tuple[str, ...]]):
    """The rows of a range, made when they are asked for."""

    def __init__(self, key: str, numbers: range):
        self._key, self._numbers = key, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: Any) -> Any:
        return (f"{self._key}={self._numbers[place]}",)


@dataclass
class Points:
    """The points of a sweep, each a list of overrides, and what was left out on the way to them."""

    found: list[list[str]] = field(default_factory=list)
    axes: list[Axis] = field(default_factory=list)
    total: int = 0  # of the axes
    excluded: int = 0  # of those that were looked at


def points_of(
    composer: Composer, master: DictConfig, lines: Sequence[str], objects: Mapping[str, Axis] | None = None
) -> Points:
    """The points that a command line, an experiment's ``hydra.sweeper.params`` and the section ``sweep`` make.

    Args:
        lines: overrides in their normal form.
        objects: further axes by the keys that ``sweep.zip`` names, in rows of as many overrides as a value takes; they replace
            axes of the same name.

    Raises:
        ConfigError: a setting is wrong, axes contradict each other, or there are no points or too many.
    """
    with explained():
        return _points(composer, master, lines, objects or {})


def _points(composer: Composer, master: DictConfig, lines: Sequence[str], objects: Mapping[str, Axis]) -> Points:
    settings = settings_of(master)
    axes, order = _axes(composer, master, lines, settings, objects)
    found = Points(axes=axes, total=math.prod(len(axis.rows) for axis in axes))
    wanted = found.total if settings.sample is None else min(settings.sample, found.total)
    if wanted > settings.max_points:
        raise ConfigError(
            f"sweep.max_points: the sweep has {wanted:,} points ({_sizes(axes)}), and {settings.max_points:,} are accepted; "
            f"raise it with sweep.max_points={wanted}, draw some with sweep.sample=N, or leave values out."
        )
    rules = Rules(settings.exclude, order, partial(_composed_value, composer, master))
    if settings.sample is None:
        found.found = [
            point for point in (_point(axes, place, order) for place in range(found.total)) if rules.keep(point)
        ]
    else:
        found.found = _drawn(axes, order, settings, rules, found.total)
    found.excluded = rules.excluded
    rules.check_keys()
    if settings.sample is None:  # else others may have them
        for line in rules.absent():
            _log.warning("warning: %s", line)
    if not found.found:
        raise ConfigError(
            f"sweep.exclude: leaves none of the {found.total} points; accepted are rules that leave some."
        )
    return found


def _composed_value(composer: Composer, master: DictConfig, point: Sequence[str]) -> Lookup:
    """What a point composes to, for keys that it does not say itself; composed when it is first asked."""
    composed: list[Any] = []

    def lookup(key: str) -> Any:
        if key in composer.groups():
            return master.hydra.runtime.choices.get(key, MISSING)
        if not composed:
            try:
                composed.append(composer.job(master, point))
            except ConfigError:
                composed.append({})  # an impossible point is said to be one when it is planned
        return select(composed[0], key)

    return lookup


# -- axes


def _axes(
    composer: Composer, master: DictConfig, lines: Sequence[str], settings: SweepSettings, objects: Mapping[str, Axis]
) -> tuple[list[Axis], list[str]]:
    params = OmegaConf.to_container(master.hydra.sweeper, resolve=True).get("params") or {}  # type: ignore[union-attr]
    experiment = composer.normalise([f"{key}={value}" for key, value in params.items()])
    _check_twice(lines)
    values: dict[str, Axis] = {}
    for line in [*experiment, *lines]:  # the command line replaces an experiment's axis
        override = lines_of.parse(line)
        override.config_loader = composer.loader
        key = override.key_or_group
        if override.is_sweep_override() and (override.is_hydra_override() or key.split(".")[0] in OF_SWEEPS):
            raise ConfigError(f"{key}: cannot be swept over; it belongs to the whole sweep.")
        if not override.is_hydra_override() and key.split(".")[0] not in OF_SWEEPS:
            values[_name(override)] = Axis((_name(override),), _rows(override, settings))
    values |= objects
    names = [_name(lines_of.parse(line)) for axis in objects.values() for row in axis.rows for line in row]
    order, axes = list(dict.fromkeys([*(key for key in values if key not in objects), *names])), dict(values)
    for together in settings.zip:
        _zip(axes, together)
    found = list(axes.values())
    if settings.points is not None:
        own = _of_file(composer, settings.points)
        if twice := [key for axis in found for key in axis.keys if key in own.keys]:
            raise ConfigError(
                f"{twice[0]}: given twice, in {settings.points} and as {_said(values[twice[0]])}; accepted is one."
            )
        found.insert(0, own)
        order = [*own.keys, *order]
    return found, order


def _name(override: Override) -> str:
    return override.get_key_element().lstrip("+")


def _check_twice(lines: Sequence[str]) -> None:
    """Refuse a key that the command line gives twice, once or more as an axis: Hydra would take the last in silence."""
    given: dict[str, str] = {}
    for line in lines:
        override = lines_of.parse(line)
        name = _name(override)
        before = given.setdefault(name, line)
        swept = override.is_sweep_override() or lines_of.parse(before).is_sweep_override()
        if before is not line and before != line and swept:
            raise ConfigError(
                f"{name}: given twice, {lines_of.as_written(before)} and {lines_of.as_written(line)}; accepted is one axis a key."
            )


def _rows(override: Override, settings: SweepSettings) -> Sequence[tuple[str, ...]]:
    key = override.key_or_group
    element = override.get_key_element()
    if override.is_interval_sweep():
        raise ConfigError(f"{key}: an interval has no end of values; accepted are a list a,b,c or range(a,b,step).")
    if not override.is_sweep_override():
        if override.is_delete():
            return [(str(override.input_line),)]
        return [(f"{element}={override.get_value_element_as_str()}",)]
    swept = override._value
    if isinstance(swept, RangeSweep):
        if not swept.step:
            raise ConfigError(f"{key}: found {_value_of(override)}, a range with the step 0; accepted is another step.")
        numbers = swept.range()
        count = len(numbers) if isinstance(numbers, range) else _count(swept)
        if isinstance(numbers, range) and not swept.shuffle and count:
            return _Numbers(element, numbers)
        if count > max(_LISTED, settings.max_points):
            raise ConfigError(
                f"{key}: found {_value_of(override)}, {count:,} values; accepted are at most {_LISTED:,}."
            )
    rows = [(f"{element}={value}",) for value in override.sweep_string_iterator()]
    if not rows:
        raise ConfigError(
            f"{key}: found {_value_of(override)}, which has no values; a sweep needs one or more on each axis."
        )
    return rows


def _count(swept: RangeSweep) -> int:
    return max(0, math.ceil((float(swept.stop or 0) - float(swept.start or 0)) / float(swept.step)))


def _value_of(override: Override) -> str:
    return str(override.input_line).partition("=")[2]


def _zip(axes: dict[str, Axis], together: Sequence[str]) -> None:
    """Make one axis of several, in place; one value goes with all of the others."""
    for key in together:
        if key not in axes:
            raise ConfigError(
                f"sweep.zip: '{key}' has no values to go with those of {' and '.join(k for k in together if k != key)}; "
                f"accepted are keys of this sweep: {', '.join(axes) or 'none'}."
            )
    sizes = {key: len(axes[key].rows) for key in together}
    longest = max(sizes.values())
    if any(size not in (1, longest) for size in sizes.values()):
        counted = ", ".join(f"{key} {size}" for key, size in sizes.items())
        raise ConfigError(f"sweep.zip: axes that go together differ in length ({counted}); accepted is one length.")
    columns = [axes[key].rows if sizes[key] == longest else [axes[key].rows[0]] * longest for key in together]
    rows = [tuple(line for cell in row for line in cell) for row in zip(*columns, strict=True)]
    made = Axis(tuple(together), rows)
    rest = {key: axis for key, axis in axes.items() if key not in together[1:]}
    axes.clear()
    axes.update({key: made if key == together[0] else axis for key, axis in rest.items()})


def _of_file(composer: Composer, path: str) -> Axis:
    rows = []
    for number, point in enumerate(read_points(path), 1):
        try:
            lines = tuple(composer.normalise(point))
        except ConfigError as error:
            raise ConfigError(f"sweep.points: {path}, point {number}: {error}") from error
        for line in lines:
            override = lines_of.parse(line)
            if override.is_sweep_override() or override.is_hydra_override() or _name(override).startswith("sweep."):
                raise ConfigError(
                    f"sweep.points: {path}, point {number}: found {lines_of.as_written(line)}; accepted is one value a key."
                )
        rows.append(lines)
    keys = dict.fromkeys(_name(lines_of.parse(line)) for row in rows for line in row)
    return Axis(tuple(keys), rows)


def _said(axis: Axis) -> str:
    shown = [lines_of.as_written(row[0]).partition("=")[2] for row in axis.rows[:4]]
    return f"{axis.keys[0]}={','.join(shown)}{',...' if len(axis.rows) > 4 else ''}"


def _sizes(axes: Sequence[Axis]) -> str:
    return " x ".join(f"{axis.name} {len(axis.rows):,}" for axis in axes if len(axis.rows) > 1)


# -- points


def _point(axes: Sequence[Axis], place: int, order: Sequence[str]) -> list[str]:
    """A point by its number; the last axis varies fastest."""
    lines: dict[str, str] = {}
    for axis in reversed(axes):
        place, row = divmod(place, len(axis.rows))
        lines |= {_name(lines_of.parse(line)): line for line in axis.rows[row]}
    return [lines[key] for key in order if key in lines]


def _drawn(
    axes: Sequence[Axis], order: Sequence[str], settings: SweepSettings, rules: Rules, total: int
) -> list[list[str]]:
    """A random subset in the sweep's order. A larger one of the same seed holds a smaller one."""
    kept: dict[int, list[str]] = {}
    for looked, place in enumerate(_random_places(total, settings.seed)):
        if len(kept) == settings.sample:
            break
        if looked == _LISTED:
            raise ConfigError(
                f"sweep.sample: of {looked:,} points looked at, sweep.exclude leaves {len(kept)}; accepted is fewer."
            )
        if rules.keep(point := _point(axes, place, order)):
            kept[place] = point
    if len(kept) < (settings.sample or 0):
        _log.info("sweep.sample: the sweep has %d points, and all are taken", len(kept))
    return [kept[place] for place in sorted(kept)]


def _random_places(total: int, seed: int) -> Iterator[int]:
    rng = random.Random(seed)
    if total <= _LISTED:
        yield from rng.sample(range(total), total)
        return
    seen: set[int] = set()
    while True:
        place = rng.randrange(total)
        if place not in seen:
            seen.add(place)
            yield place

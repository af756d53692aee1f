"""The jobs of a folder, read from their records: what was set, measured and spent, and which settings a sweep varies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import UserError
from research.files import plain_file
from research.jobs.changed_plugs import changed_lines, made_before
from research.jobs.record import RESULT, DamagedRecord, ImageRecord, JobResult, NoRecord, read_result, read_sweep_record
from research.labels import is_number
from research.metrics.base import listed_in
from research.picture_files import errors_named, loaded, picture_size
from research.results.axes import Axis, find_axes, flatten
from research.results.budget import Budget, read_budget
from research.results.scales import Margin, read_margins
from research.results.timing import Timing, out_of_line, timing
from research.statistics import read_unit

if TYPE_CHECKING:
    from PIL import Image

# numbers of which one metric makes several, and what it is called
_TOGETHER = dict.fromkeys(("precision", "recall", "density", "coverage"), "prdc")


@dataclass(frozen=True, eq=False)
class Row:
    """One job; two rows are equal only if they are the same one.

    Attributes:
        folder: where its files are.
        result: its record.
        settings: the composed config, flat.
        unit: what its intervals are over, where that was asked for (``report.unit``): see `research.statistics.unit_of`.
        out_of_line: why its seconds say nothing of its setting (`research.results.timing`); empty where they do.
        derived: what was worked out from the record before, by what it is and its metric.
    """

    folder: Path
    result: JobResult
    settings: Mapping[str, Any]
    unit: str = ""
    out_of_line: str = ""
    derived: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)

    @property
    def job_id(self) -> str:
        return self.result.job_id

    @property
    def done(self) -> bool:
        return self.result.done

    @property
    def error(self) -> str:
        """The first line of what went wrong, or an empty string."""
        return self.result.error_line

    @cached_property
    def metrics(self) -> dict[str, float]:
        return {name: value for name, value in self.result.metrics.items() if value is not None}

    @property
    def timings(self) -> dict[str, float]:
        """Seconds: load, encode, denoise, decode, metrics, total."""
        return self.result.timings

    @property
    def n_images(self) -> int:
        return self.result.n_images

    @cached_property
    def timing(self) -> Timing:
        """Seconds an image, and the latency of one, with their spread."""
        return timing(self.folder, self.result)

    @property
    def seconds_per_image(self) -> float | None:
        """Seconds of sampling an image: encode, denoise and decode, without loading and scoring; the median of `timing`."""
        return None if self.timing.seconds is None else self.timing.seconds.median

    @property
    def images(self) -> list[ImageRecord]:
        return self.result.images

    @cached_property
    def per_image(self) -> dict[str, list[float]]:
        """Numbers of single images by metric, in the order of the images; NaN where one has none. Empty where none were kept.

        They are read from ``images[*].scores``, or else from ``metrics_info.<metric>.per_image``.
        """
        images = self.result.images
        found: dict[str, list[float]] = {}
        for name in dict.fromkeys(name for image in images for name in image.scores):
            scores = [image.scores.get(name) for image in images]
            found[name] = [math.nan if score is None else score for score in scores]
        for metric, info in self.result.metrics_info.items():
            for name, listed in listed_in(metric, info).items():
                right = isinstance(listed, list) and len(listed) == len(images) and all(map(is_number, listed))
                if right and name not in found:
                    found[name] = [float(score) for score in listed]
        return found

    @cached_property
    def scores(self) -> dict[str, dict[tuple[str, Any], float]]:
        """The same by prompt and seed, ``{metric: {(prompt, seed): score}}``, without those that are no number."""
        keys = [(image.prompt or "", image.seed) for image in self.result.images]
        scored = {
            name: {key: score for key, score in zip(keys, scores, strict=True) if math.isfinite(score)}
            for name, scores in self.per_image.items()
        }
        return {name: scores for name, scores in scored.items() if scores}

    def info(self, metric: str) -> Mapping[str, Any]:
        """What a metric was computed with; of ``<metric>_at_k`` and other companions, what the metric itself was."""
        infos = self.result.metrics_info
        if metric not in infos and metric in _TOGETHER:
            metric = _TOGETHER[metric]
        while metric:
            if metric in infos:
                return infos[metric]
            metric = metric.rpartition("_")[0]
        return {}

    @property
    def pictures(self) -> dict[str, Path]:
        """Files of the pictures that the task made of all images together, by name."""
        return {name: self.folder / file for name, file in self.result.pictures.items()}

    def image_path(self, image: ImageRecord) -> Path:
        """The file of an image, whether the record names it with or without its folder."""
        path = self.folder / image.file
        return path if path.is_file() else self.folder / "images" / image.file

    def read_image(self, image: ImageRecord) -> Image.Image:
        """An image as RGB of 8 bits.

        Raises:
            ConfigError: its file is gone, a link out of the job's folder, no picture, or too large.
        """
        with errors_named(self.result.job_id, image.file), self._image_file(image).open("rb") as stream:
            return loaded(stream).convert("RGB")

    def image_size(self, image: ImageRecord) -> tuple[int, int]:
        """Width and height of an image, by what stands at the beginning of its file.

        Raises:
            ConfigError: likewise, but for its size.
        """
        with errors_named(self.result.job_id, image.file):
            return picture_size(self._image_file(image))

    def _image_file(self, image: ImageRecord) -> Path:
        return plain_file(self.folder, self.image_path(image).relative_to(self.folder).as_posix())


@dataclass(frozen=True)
class Sweep:
    """A set of jobs, in the order in which they are shown.

    Attributes:
        axes: the settings that differ between the jobs.
        damaged: a line for each job folder that could not be read.
        before: jobs that are not among the rows, as a plug of the user's own has changed since they were made.
        changed: a sentence on these for each class, less its full stop.
        margins: of metrics, where they are not the default (`research.results.scales`).
        budget: what a setting may cost to be advised.
        figures: metrics and axes that a figure is asked for, besides those that the page has by itself.
        derived: what was worked out of the jobs together before.
    """

    directory: Path
    rows: list[Row]
    axes: list[Axis]
    damaged: list[str] = field(default_factory=list)
    before: list[Row] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    margins: Mapping[str, Margin] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    figures: Sequence[tuple[str, str]] = ()
    derived: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        names = {r.result.sweep_name for r in self.rows if r.result.sweep_name}
        return names.pop() if len(names) == 1 else self.directory.resolve().name

    @cached_property
    def done(self) -> list[Row]:
        return [r for r in self.rows if r.done]

    @property
    def failed(self) -> list[Row]:
        return [r for r in self.rows if not r.done]


def read_row(folder: Path) -> Row:
    """One job folder.

    Raises:
        UserError: ``result.json`` is missing or not the record of a job.
    """
    result = read_result(folder)
    config = flatten(result.config)
    # plugs of the user's own go by their class; sweeps of before there were the groups left the levels to the model, and made
    # each image once
    levels = str(config.get("sigmas._target_") or "model").rpartition(".")[2]
    sampler = str(config.get("sampler._target_") or "loop").rpartition(".")[2]
    return Row(folder, result, {"sigmas.name": levels, "sampler.name": sampler, **config})


def read_sweep(directory: Path) -> Sweep:
    """All jobs of a sweep's folder; damaged ones are named and left out, unfinished ones have no record yet.

    Jobs that were made with an earlier version of a plug of the user's own stand apart, unless they were those last asked for:
    pictures of old and new code are not shown as if settings told them apart.

    Raises:
        UserError: the folder does not exist or holds no job with a record.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: found no such folder; accepted is a sweep's folder, outputs/<sweep_name>.")
    rows, damaged = [], []
    for file in sorted(directory.glob(f"*/{RESULT}")):
        try:
            rows.append(read_row(file.parent))
        except (DamagedRecord, NoRecord) as error:
            damaged.append(str(error).replace(f"{directory}/", "", 1))
    if not rows:
        raise UserError(f"{directory}: {_why_empty(directory, damaged)}")
    rows.sort(key=lambda r: (r.result.created or "", r.job_id))
    earlier = made_before([row.result for row in rows], _last_asked(directory))
    ids = {job.job_id for job in earlier}
    before, rows = [r for r in rows if r.job_id in ids], [r for r in rows if r.job_id not in ids]
    axes = find_axes([r.settings for r in rows])
    # the sort is stable, so jobs that agree on all axes stay in the order they ran
    rows.sort(key=lambda r: [axis.values.index(r.settings.get(axis.key)) for axis in axes])
    rows = with_seconds_judged(rows)
    found = Sweep(
        directory, rows, axes, damaged, before, changed_lines(earlier), _margins(directory), _budget(directory)
    )
    return over_unit(found, asked_unit(directory))


def with_seconds_judged(rows: Sequence[Row]) -> list[Row]:
    """The jobs, those marked whose seconds are out of line with the others'."""
    said = out_of_line([(row.result, row.timing) for row in rows])
    return [replace(row, out_of_line=why) if why else row for row, why in zip(rows, said, strict=True)]


def over_unit(sweep: Sweep, unit: str) -> Sweep:
    """A sweep with intervals over a unit, as `Row.unit` has it."""
    if all(row.unit == unit for row in sweep.rows):
        return sweep
    rows, before = ([replace(row, unit=unit, derived={}) for row in of] for of in (sweep.rows, sweep.before))
    return replace(sweep, rows=rows, before=before, derived={})


def _last_asked(directory: Path) -> list[str]:
    try:
        return read_sweep_record(directory).jobs
    except (DamagedRecord, NoRecord):
        return []


def _margins(directory: Path) -> dict[str, Margin]:
    """As the command that was run last says; none where ``sweep.json`` is not there or damaged."""
    try:
        return read_margins("report.margin", read_sweep_record(directory).margin)
    except UserError:
        return {}


def _budget(directory: Path) -> Budget:
    """``budget`` of the command that was run last; none where ``sweep.json`` says none, or is gone or damaged."""
    try:
        return read_budget("budget", read_sweep_record(directory).budget)
    except UserError:
        return Budget()


def asked_unit(directory: Path) -> str:
    """``report.unit`` of the command that was run last; empty where it says nothing, or ``sweep.json`` is gone or damaged."""
    try:
        return read_unit("report.unit", read_sweep_record(directory).unit)
    except UserError:
        return ""


def _why_empty(directory: Path, damaged: list[str]) -> str:
    if damaged:
        return f"found no readable result; {damaged[0]}" + (f" (and {len(damaged) - 1} more)" if damaged[1:] else "")
    inside = sorted({p.parent.parent.name for p in directory.glob("*/*/result.json")})
    if inside:
        return f"found sweeps inside and no jobs; name one of them: {', '.join(inside[:5])}"
    return "found no finished job (no */result.json); accepted is a sweep's folder, outputs/<sweep_name>."

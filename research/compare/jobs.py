"""The jobs to compare, read from their folders: records of the same images are one job, further runs of it give seconds only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from research.errors import UserError, nearest
from research.jobs.record import DamagedRecord, NoRecord
from research.results.axes import find_axes
from research.results.read import Row, asked_unit, read_row, read_sweep, with_seconds_judged

Key = tuple[str, int, int]  # prompt, seed, and which of those of the same prompt and seed
DATA = ("seed", "seeds", "prompts", "images_per_prompt")  # settings that say which images are made, and not how


@dataclass(eq=False)
class ComparedJob:
    """A job as it is compared.

    Attributes:
        rows: its records: more than one where ``research-score`` gave the same images other metrics. The first is the oldest.
        repeats: records of further runs of it.
    """

    rows: list[Row]
    repeats: list[Row] = field(default_factory=list)

    @property
    def row(self) -> Row:
        return self.rows[0]

    @property
    def id(self) -> str:
        return self.row.job_id

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.row.settings

    @cached_property
    def keys(self) -> list[Key]:
        """What names each image, in order; a prompt and seed that come twice are told apart by their order."""
        seen: Counter[Hashable] = Counter()
        found = []
        for image in self.row.result.images:
            pair = image.prompt or "", image.seed
            found.append((*pair, seen[pair]))
            seen[pair] += 1
        return found

    def holder(self, metric: str) -> Row | None:
        """The record that has a metric: the newest of them."""
        return next((row for row in reversed(self.rows) if metric in row.metrics), None)

    @cached_property
    def scores(self) -> dict[str, dict[Key, float]]:
        """Numbers of single images, by metric."""
        found: dict[str, dict[Key, float]] = {}
        for row in self.rows:
            for metric, values in row.per_image.items():
                found[metric] = dict(zip(self.keys, values, strict=True))
        return found


def read_place(place: Path) -> tuple[list[Row], list[str]]:
    """The done jobs of a sweep's folder, or the one job that a folder is; and what to say of the others.

    Raises:
        UserError: there is no such folder, or no done job in it.
    """
    if not place.is_dir():
        beside = [p.name for p in place.parent.iterdir() if p.is_dir()] if place.parent.is_dir() else []
        raise UserError(
            f"{place}: found no such folder.{nearest(place.name, beside)} "
            "Accepted is a sweep's, outputs/<sweep_name>, or a job's."
        )
    if (place / "result.json").is_file():
        row = read_row(place)
        if not row.done:
            raise UserError(
                f"{place}: found a failed job ({row.error or 'no error recorded'}); accepted are jobs that are done."
            )
        row = _beside_others(place.resolve(), row)
        return [replace(row, unit=asked_unit(place.resolve().parent))], []
    if (place / "config.yaml").is_file():
        raise UserError(f"{place}: found a job without result.json, interrupted or half deleted; run it again.")
    sweep = read_sweep(place)
    if not sweep.done:
        raise UserError(
            f"{place}: found no done job ({len(sweep.failed)} failed: {sweep.failed[0].error}); run the sweep again."
        )
    notes = [f"{sweep.name}: {line} and left out; a job's own folder names it." for line in sweep.changed]
    notes += [f"{sweep.name}: damaged and left out: {line}" for line in sweep.damaged]
    if altered := [row.job_id for row in sweep.done if row.result.altered]:
        notes.append(
            f"{sweep.name}: altered after they were written, and compared as they stand: {', '.join(altered[:5])}."
        )
    if sweep.failed:
        notes.append(f"{sweep.name}: {len(sweep.failed)} failed jobs are left out.")
    return sweep.done, notes


_BESIDE = 64  # other jobs of its sweep that the seconds of a single one are held against


def _beside_others(place: Path, row: Row) -> Row:
    """A job, marked if its seconds are out of line with those of others of its sweep."""
    others = []
    for file in sorted(place.parent.glob("*/result.json"))[:_BESIDE]:
        try:
            if file.parent != place:
                others.append(read_row(file.parent))
        except (DamagedRecord, NoRecord):
            continue
    return with_seconds_judged([row, *others])[0]


def gather(rows: Sequence[Row]) -> list[ComparedJob]:
    """Jobs of records: the same job twice is a repeated run, the same images and settings with other metrics are one job."""
    jobs: list[ComparedJob] = []
    by_id: dict[str, ComparedJob] = {}
    by_images: dict[Hashable, list[ComparedJob]] = {}
    for row in rows:
        if (job := by_id.get(row.job_id)) is not None:
            if row.folder.resolve() not in {r.folder.resolve() for r in (*job.rows, *job.repeats)}:
                job.repeats.append(row)
            continue
        images = tuple(image.sha256 for image in row.result.images)
        alike = by_images.setdefault(images, [])
        same = [j for j in alike if images and None not in images and not find_axes([j.settings, row.settings])]
        if same:
            same[0].rows.append(row)
            by_id[row.job_id] = same[0]
            continue
        job = ComparedJob([row])
        by_id[row.job_id] = job
        alike.append(job)
        jobs.append(job)
    for job in jobs:
        job.rows.sort(key=lambda r: r.result.created or "")
    return jobs


def matching(rows: Sequence[Row], where: Sequence[str]) -> list[Row]:
    """Those with all the settings ``KEY=VALUE``.

    Raises:
        UserError: no ``=``, a key that no job has, or a value that none has.
    """
    found = list(rows)
    for condition in where:
        key, equals, wanted = condition.partition("=")
        if not equals or not wanted:
            raise UserError(f"--where: found {condition!r}; accepted is KEY=VALUE, as in scheduler.name=ddim.")
        key = setting_key(key, [r.settings for r in rows], "--where")
        matching = [r for r in found if has_value(r.settings.get(key), wanted)]
        if not matching:
            values = list(dict.fromkeys(setting_text(r.settings.get(key)) for r in found))
            raise UserError(
                f"--where {condition}: found no such job; accepted are values of {key} there are: {', '.join(values[:8])}."
            )
        found = matching
    return found


_SHORT = {
    "scheduler": "scheduler.name",
    "sigmas": "sigmas.name",
    "sampler": "sampler.name",
    "guidance": "guidance._target_",
    "model": "model.path",
    "task": "task._target_",
}


def setting_key(key: str, settings: Sequence[Mapping[str, Any]], option: str) -> str:
    """A setting's whole key; a group's name stands for what it chooses.

    Raises:
        UserError: no job has it.
    """
    known = {k for s in settings for k in s}
    if key in known:
        return key
    if _SHORT.get(key) in known:
        return _SHORT[key]
    varied = [axis.key for axis in find_axes(settings)]
    raise UserError(
        f"{option}: found {key!r}, which no job has.{nearest(key, known)} "
        f"Settings that differ between these jobs: {', '.join(varied) or 'none'}."
    )


def has_value(value: Any, typed: str) -> bool:
    """Whether a setting has the value that someone typed."""
    if isinstance(value, bool) or value is None:
        return typed.lower() in ({"none", "null"} if value is None else {str(value).lower()})
    if isinstance(value, int | float):
        try:
            return float(typed) == value
        except ValueError:
            return False
    return setting_text(value) == typed or str(value) == typed


def setting_text(value: Any) -> str:
    """A setting's value in full, as a name."""
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)

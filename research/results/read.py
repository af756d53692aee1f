"""The jobs of a folder, read from their records: what was set, measured and spent, and which settings a sweep varies."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from research.errors import UserError
from research.results.axes import Axis, find_axes, flatten

# numbers of which one metric makes several, and what it is called
_TOGETHER = dict.fromkeys(("precision", "recall", "density", "coverage"), "prdc")


@dataclass(frozen=True, eq=False)
class Row:
    """One job; two rows are equal only if they are the same one.

    Attributes:
        folder: where its files are.
        record: the content of ``result.json``.
        settings: the composed config, flat.
        memo: what was worked out from the record before.
    """

    folder: Path
    record: Mapping[str, Any]
    settings: Mapping[str, Any]
    memo: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)

    @property
    def job_id(self) -> str:
        return str(self.record.get("job_id") or self.folder.name)

    @property
    def done(self) -> bool:
        return self.record.get("status") == "done"

    @property
    def error(self) -> str:
        """The first line of what went wrong, or an empty string."""
        lines = str(self.record.get("error") or "").strip().splitlines()
        return lines[0] if lines else ""

    @cached_property
    def metrics(self) -> dict[str, float]:
        return _numbers(self.record.get("metrics"))

    @cached_property
    def timings(self) -> dict[str, float]:
        """Seconds: load, encode, denoise, decode, metrics, total."""
        return _numbers(self.record.get("timings"))

    @property
    def n_images(self) -> int:
        return int(self.record.get("n_images") or 0)

    @property
    def seconds_per_image(self) -> float | None:
        """Seconds of sampling an image: encode, denoise and decode, without loading and scoring."""
        spent = sum(self.timings.get(part, 0.0) for part in ("encode", "denoise", "decode"))
        return spent / self.n_images if self.n_images and spent else None

    @cached_property
    def images(self) -> list[dict[str, Any]]:
        """``file`` (relative to the folder), ``seed``, ``prompt`` of each image."""
        found = self.record.get("images")
        return [i for i in found if isinstance(i, dict) and "file" in i] if isinstance(found, list) else []

    @cached_property
    def scores(self) -> dict[str, dict[tuple[str, Any], float]]:
        """Scores of single images, ``{metric: {(prompt, seed): score}}``; empty where the job kept none.

        They are read from ``images[*].scores``, or else from ``metrics_info.<metric>.per_image``, a list in the images' order.
        """
        found: dict[str, dict[tuple[str, Any], float]] = {}
        keys = [(str(i.get("prompt") or ""), i.get("seed")) for i in self.images]
        for key, image in zip(keys, self.images, strict=True):
            for name, score in _numbers(image.get("scores")).items():
                if math.isfinite(score):
                    found.setdefault(name, {})[key] = score
        for name, info in _mapping(self.record.get("metrics_info")).items():
            listed = _mapping(info).get("per_image")
            if name in found or not isinstance(listed, list) or len(listed) != len(keys):
                continue
            numbers = _numbers(dict(enumerate(listed)))
            if len(numbers) == len(keys):
                found[name] = dict(zip(keys, numbers.values(), strict=True))
        return found

    def info(self, metric: str) -> Mapping[str, Any]:
        """What a metric was computed with; of ``<metric>_at_k`` and other companions, what the metric itself was."""
        infos = _mapping(self.record.get("metrics_info"))
        if metric not in infos and metric in _TOGETHER:
            metric = _TOGETHER[metric]
        while metric:
            if metric in infos:
                return _mapping(infos[metric])
            metric = metric.rpartition("_")[0]
        return {}

    @property
    def pictures(self) -> dict[str, Path]:
        """Files of the pictures that the task made of all images together, by name."""
        found = self.record.get("pictures")
        return {str(k): self.folder / str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    def image_path(self, image: Mapping[str, Any]) -> Path:
        """The file of an image, whether the record names it with or without its folder."""
        path = self.folder / str(image["file"])
        return path if path.is_file() else self.folder / "images" / str(image["file"])


@dataclass(frozen=True)
class Sweep:
    """A set of jobs, in the order in which they are shown.

    Attributes:
        axes: the settings that differ between the jobs.
        damaged: a line for each job folder that could not be read.
    """

    directory: Path
    rows: list[Row]
    axes: list[Axis]
    damaged: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        names = {str(r.record.get("sweep_name")) for r in self.rows if r.record.get("sweep_name")}
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
        UserError: ``result.json`` is missing or not a record of a job.
    """
    file = folder / "result.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.name}/result.json cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(record, dict) or "status" not in record:
        raise UserError(f"{folder.name}/result.json is not the record of a job: it has no 'status'")
    config = record.get("config")
    return Row(folder, record, flatten(config if isinstance(config, dict) else {}))


def read_sweep(directory: Path) -> Sweep:
    """All jobs of a sweep's folder; damaged ones are named and left out, unfinished ones have no record yet.

    Raises:
        UserError: the folder does not exist or holds no job with a record.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: found no such folder; accepted is a sweep's folder, outputs/<sweep_name>.")
    rows, damaged = [], []
    for file in sorted(directory.glob("*/result.json")):
        try:
            rows.append(read_row(file.parent))
        except UserError as error:
            damaged.append(str(error))
    if not rows:
        raise UserError(f"{directory}: {_why_empty(directory, damaged)}")
    rows.sort(key=lambda r: (str(r.record.get("created") or ""), r.job_id))
    axes = find_axes([r.settings for r in rows])
    # the sort is stable, so jobs that agree on all axes stay in the order they ran
    rows.sort(key=lambda r: [axis.values.index(r.settings.get(axis.key)) for axis in axes])
    return Sweep(directory, rows, axes, damaged)


def _why_empty(directory: Path, damaged: list[str]) -> str:
    if damaged:
        return f"found no readable result; {damaged[0]}" + (f" (and {len(damaged) - 1} more)" if damaged[1:] else "")
    inside = sorted({p.parent.parent.name for p in directory.glob("*/*/result.json")})
    if inside:
        return f"found sweeps inside and no jobs; name one of them: {', '.join(inside[:5])}"
    return "found no finished job (no */result.json); accepted is a sweep's folder, outputs/<sweep_name>."


def _numbers(found: Any) -> dict[str, float]:
    items = found.items() if isinstance(found, dict) else ()
    return {str(k): float(v) for k, v in items if isinstance(v, (int, float)) and not isinstance(v, bool)}


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}

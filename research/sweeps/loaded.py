"""A sweep's folder as objects: jobs with their images, numbers and traces, a table, and the report."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.directions import direction
from research.errors import UserError, nearest
from research.files import plain_file
from research.jobs.machine_slots import only_process
from research.jobs.record import JobResult, Trace, read_trace
from research.jobs.store import TENSORS
from research.labels import value_label
from research.picture_files import errors_named, loaded
from research.results.axes import Axis, find_axes
from research.results.read import Row, Sweep, read_row, read_sweep
from research.showing import card, grid, pictures, table

if TYPE_CHECKING:
    from PIL import Image

    from research.compare import Comparison

_SHOWN = 12  # jobs with pictures, and pictures of a job


class LoadedJob:
    """A job as its folder has it. Nothing is read before it is asked for, but for the record.

    Attributes:
        folder: where its files are.
        result: its record, `research.jobs.record.JobResult`.
        settings: the composed config, flat: ``job.settings["guidance.scale"]``.
        metrics: numbers by name.
        per_image: numbers of single images by metric, in their order.
    """

    def __init__(self, row: Row, axes: Sequence[Axis] = ()):
        self._row, self._axes = row, axes
        self.folder: Path = row.folder
        self.result: JobResult = row.result
        self.settings: Mapping[str, Any] = row.settings
        self.metrics: dict[str, float] = row.metrics
        self.per_image: dict[str, list[float]] = row.per_image

    @property
    def id(self) -> str:
        return self.result.job_id

    @property
    def done(self) -> bool:
        return self.result.done

    @property
    def error(self) -> str:
        """The first line of what went wrong; empty of a job that is done."""
        return self.result.error_line

    @property
    def nfe(self) -> int | None:
        """Model evaluations an image."""
        return self.result.nfe

    @property
    def timings(self) -> dict[str, float]:
        """Seconds: load, encode, denoise, decode, metrics, total."""
        return self.result.timings

    @property
    def seconds_per_image(self) -> float | None:
        return self._row.seconds_per_image

    @property
    def seeds(self) -> list[int]:
        return [image.seed for image in self.result.images]

    @property
    def prompts(self) -> list[str | None]:
        return [image.prompt for image in self.result.images]

    @cached_property
    def images(self) -> list[Image.Image]:
        """Its pictures as PIL images, in the order of `seeds`.

        Raises:
            UserError: a file is gone, or is no picture.
        """
        return [_opened(self._row.image_path(image)) for image in self.result.images]

    @cached_property
    def pictures(self) -> dict[str, Image.Image]:
        """Further pictures of all images together, by name."""
        return {name: _opened(file) for name, file in self._row.pictures.items()}

    @cached_property
    def trace(self) -> Trace:
        """Its stages with timestep, sigma and seconds, and what recorders kept (`research.jobs.record.Trace`)."""
        return read_trace(self.folder)

    def tensors(self) -> dict[str, Any]:
        """Tensors that recorders kept whole, by name, each with the images of all batches; empty where none were kept."""
        import torch
        from safetensors.torch import load_file

        parts = [load_file(file) for file in sorted((self.folder / TENSORS).glob("*.safetensors"))]
        return {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}

    def grid(self, columns: int | None = None, side: int | None = None) -> Image.Image:
        """All images as one; see `research.sampling.result.SampleResult.grid`."""
        if not self.result.images:
            raise UserError(f"grid: job {self.id} has no images; {self.error or 'it has none'}.")
        found: Image.Image = grid(self.images, columns, side)
        return found

    @property
    def title(self) -> str:
        """What tells it from the other jobs of its sweep."""
        told = [f"{axis.label} {value_label(self.settings.get(axis.key))}" for axis in self._axes]
        return ", ".join(told) or self.id

    def __repr__(self) -> str:
        state = f"{len(self.result.images)} images, {self.nfe} NFE" if self.done else f"failed: {self.error}"
        return f"LoadedJob({self.id}, {self.title}, {state})"

    def _repr_html_(self) -> str:
        facts = {
            "job": self.id,
            "state": "done" if self.done else f"failed: {self.error}",
            "NFE an image": self.nfe,
            "seconds an image": self.seconds_per_image,
            **self.metrics,
            "folder": str(self.folder),
        }
        seen = self.images[:_SHOWN] if self.done else []
        captions = [f"{seed}: {prompt or ''}" for seed, prompt in zip(self.seeds, self.prompts, strict=True)]
        return card(self.title, facts) + pictures(seen, captions)


class LoadedSweep:
    """Jobs of a sweep's folder. It is a sequence of them: ``len(sweep)``, ``sweep[0]``, ``for job in sweep``.

    Attributes:
        folder: of the sweep.
        jobs: in the order in which they are shown, failed ones too.
    """

    def __init__(self, sweep: Sweep, note: str | None = None):
        self._sweep, self.note = sweep, note
        self.folder: Path = sweep.directory
        self.jobs: list[LoadedJob] = [LoadedJob(row, sweep.axes) for row in sweep.rows]

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The settings that differ between the jobs, with their values."""
        return {axis.key: axis.values for axis in self._sweep.axes}

    @property
    def failed(self) -> list[LoadedJob]:
        return [job for job in self.jobs if not job.done]

    @property
    def damaged(self) -> list[str]:
        """A line for each job folder that cannot be read."""
        return list(self._sweep.damaged)

    @property
    def table(self) -> Any:
        """A row a job: what differs, metrics, NFE, seconds an image. A DataFrame of pandas where that is installed, else a list
        of dicts."""
        rows = self.rows()
        try:
            import pandas
        except ImportError:
            return rows
        return pandas.DataFrame(rows)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `table` as dicts."""
        names = list(dict.fromkeys(name for job in self.jobs for name in job.metrics))
        return [
            {
                **{axis.key: job.settings.get(axis.key) for axis in self._sweep.axes},
                **{name: job.metrics.get(name) for name in names},
                "nfe": job.nfe,
                "seconds_per_image": job.seconds_per_image,
                "images": job.result.n_images,
                "status": job.result.status,
                "job": job.id,
            }
            for job in self.jobs
        ]

    @property
    def report(self) -> Path:
        """The page over all jobs of the folder, ``report.html``, built anew where it is not that of its jobs."""
        return built_report(self.folder)

    def where(self, settings: Mapping[str, Any] | None = None, /, **more: Any) -> LoadedSweep:
        """The jobs with these settings: ``where(steps=10, scheduler="ddim")``, ``where({"guidance.scale": 3})``.

        A group stands for the name of its choice, its class, or its path.

        Raises:
            UserError: no job has such a setting, or none has all of these values.
        """
        rows = self._sweep.rows
        for key, wanted in {**(settings or {}), **more}.items():
            name = self._setting(key)
            kept = [row for row in rows if _is(row.settings.get(name), wanted)]
            if not kept:
                there = dict.fromkeys(value_label(row.settings.get(name)) for row in rows)
                raise UserError(f"where: {key}: found {wanted!r}, which no job has; accepted: {', '.join(there)}.")
            rows = kept
        return self._of(rows)

    def best(self, metric: str) -> LoadedJob:
        """The job with the best number of a metric, ``nfe`` or ``seconds_per_image``.

        Raises:
            UserError: no job has it, or it is not known which way is better.
        """
        cost = metric in ("nfe", "seconds_per_image")
        found = [(getattr(job, metric) if cost else job.metrics.get(metric), job) for job in self.jobs if job.done]
        known = [(value, job) for value, job in found if value is not None]
        if not known:
            names = dict.fromkeys(name for job in self.jobs for name in job.metrics)
            raise UserError(
                f"best: found {metric!r}, which no job has.{nearest(metric, names)} Accepted: {', '.join([*names, 'nfe'])}, "
                "seconds_per_image."
            )
        way = -1 if cost else direction(metric, dict(known[0][1]._row.info(metric)) or None)
        if not way:
            raise UserError(
                f"best: it is not known whether more of {metric} is better; accepted is a metric that says so."
            )
        return max(known, key=lambda each: way * each[0])[1]

    def compare(self, other: Any = None, **settings: Any) -> Comparison:
        """Compare the jobs of this sweep, its values of an ``axis``, or it with another; see `research.compare.compare`."""
        from research.compare import compare

        return compare(*[each for each in (self, other) if each is not None], **settings)

    def _setting(self, key: str) -> str:
        known = {name for row in self._sweep.rows for name in row.settings}
        for name in (key, f"{key}.name", f"{key}._target_", f"{key}.path"):
            if name in known:
                return name
        raise UserError(f"where: found {key!r}, which is no setting of these jobs.{nearest(key, known)}")

    def _of(self, rows: Sequence[Row]) -> LoadedSweep:
        axes = find_axes([row.settings for row in rows])
        return LoadedSweep(dataclasses.replace(self._sweep, rows=list(rows), axes=axes, derived={}), self.note)

    def only(self, ids: Collection[str]) -> LoadedSweep:
        """The jobs with these ids, in their order."""
        by_id = {row.job_id: row for row in self._sweep.rows}
        return self._of([by_id[each] for each in dict.fromkeys(ids) if each in by_id])

    def __len__(self) -> int:
        return len(self.jobs)

    def __iter__(self) -> Iterator[LoadedJob]:
        return iter(self.jobs)

    def __getitem__(self, which: int | slice | str) -> Any:
        """A job by its place or the beginning of its id; several by a slice."""
        if isinstance(which, slice):
            return self._of(self._sweep.rows[which])
        if isinstance(which, int):
            return self.jobs[which]
        found = [job for job in self.jobs if job.id.startswith(which)]
        if len(found) != 1:
            raise UserError(
                f"job: found {which!r}, with which {len(found)} ids begin; accepted is the beginning of one."
            )
        return found[0]

    def __repr__(self) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        axes = " x ".join(f"{axis.label} {len(axis.values)}" for axis in self._sweep.axes)
        return f"LoadedSweep({self.folder}, {len(self.jobs)} jobs{failed}{f': {axes}' if axes else ''})"

    def _repr_html_(self) -> str:
        labels = {axis.key: axis.label for axis in self._sweep.axes}
        rows = [{labels.get(key, key): _shown(value) for key, value in row.items()} for row in self.rows()]
        seen = [job for job in self.jobs if job.done and job.result.images][:_SHOWN]
        first = [_opened(job._row.image_path(job.result.images[0])) for job in seen]
        page = self.folder / "report.html"
        link = (
            f"<p>report: <a href='{escape(os.path.relpath(page))}'>{escape(str(page))}</a></p>"
            if page.is_file()
            else ""
        )
        said = "".join(f"<p>{escape(line)}</p>" for line in [*([self.note] if self.note else []), *self.damaged])
        return f"<div><b>{escape(repr(self))}</b></div>{table(rows)}{pictures(first, [job.title for job in seen])}{said}{link}"


def load_sweep(folder: str | os.PathLike[str]) -> LoadedSweep:
    """The jobs of a sweep's folder, ``outputs/<sweep_name>``, or of a job's own folder.

    Raises:
        UserError: the folder is not there, or holds no job with a record.
    """
    place = Path(folder).expanduser()
    if (place / "result.json").is_file():
        row = read_row(place)
        return LoadedSweep(Sweep(place.parent, [row], []))
    return LoadedSweep(read_sweep(place))


def built_report(folder: Path) -> Path:
    """The report of a sweep, built unless it is there already, without its table on the terminal."""
    from rich.console import Console

    from research.report.build import build_report, current_report

    with only_process(f"report {folder.absolute()}"):
        found = current_report(folder) or build_report(folder, console=Console(file=io.StringIO(), force_jupyter=False))
    return found.report_html


def _opened(file: Path) -> Image.Image:
    with errors_named("images", str(file)), plain_file(file.parent, file.name).open("rb") as stream:
        return loaded(stream)


def _is(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list | tuple | set) and not isinstance(value, tuple):
        return any(_is(value, each) for each in wanted)
    wanted = getattr(wanted, "__name__", wanted) if isinstance(wanted, type) else wanted
    return bool(value == wanted or (isinstance(wanted, list) and value == tuple(wanted)))


def _shown(value: Any) -> Any:
    return "" if value is None else value if isinstance(value, int | float) else value_label(value)

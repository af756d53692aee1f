"""What the studies' analyses share: jobs with the scores of their images, intervals, tables and the look of the figures.

Intervals are 95 % ones by `research.statistics`: over prompts where there are several with several images, over images otherwise,
so that they hold what other prompts and seeds of the kind would change. Jobs draw the same, and differences between jobs are
paired: their intervals are of the differences themselves.
"""

from __future__ import annotations

import csv
import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from research import statistics
from research.drawing import COLOURS, GRID, INK, MARKERS, look, said_better, value_ticks
from research.errors import UserError
from research.results.read import Row, read_sweep
from research.statistics import PROMPTS, Estimate, unit_of

__all__ = ["COLOURS", "GRID", "INK", "MARKERS", "look", "said_better"]

Key = tuple[Any, ...]  # the unit, then what tells its images apart
Array = NDArray[np.float64]


def jobs(folder: Path) -> list[Row]:
    """The finished jobs of a sweep.

    Raises:
        UserError: there is none.
    """
    return read_sweep(folder).done


def setting(row: Row, key: str) -> Any:
    """A value of a job's config by its dotted key."""
    found: Any = row.result.config
    for part in key.split("."):
        found = found[part]
    return found


def grouped(rows: Iterable[Row], *keys: str | Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Jobs by the values of some keys, in the order of those values; a single key is no tuple."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        values = tuple(key(row) if callable(key) else setting(row, key) for key in keys)
        found.setdefault(values if len(keys) > 1 else values[0], []).append(row)
    return found


def run(main: Callable[[], None]) -> None:
    """A script's `main`, whose user errors are one line and exit code 1."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")


def single(cells: Mapping[Any, list[Row]]) -> dict[Any, Row]:
    """The one job of each cell.

    Raises:
        UserError: a cell has several, as something else was swept too.
    """
    for cell, rows in cells.items():
        if len(rows) > 1:
            raise UserError(
                f"{cell}: found {len(rows)} jobs ({rows[0].job_id}, {rows[1].job_id}, ...); accepted is one for each point."
            )
    return {cell: rows[0] for cell, rows in cells.items()}


def image_keys(row: Row, *more: Any) -> list[Key]:
    """One key an image: its prompt, its seed, and what the caller adds."""
    return [(image.prompt or "", image.seed, *more) for image in row.result.images]


def scores(row: Row, metric: str, *more: Any) -> dict[Key, float]:
    """The scores of a job's images by their keys."""
    listed = row.result.metrics_info[metric]["per_image"]
    return dict(zip(image_keys(row, *more), map(float, listed), strict=True))


def mean(values: Mapping[Key, float]) -> Estimate:
    """The mean over images with its interval over prompts, or over images where there is one a prompt."""
    prompts = [str(key[0]) for key in values]
    found = statistics.mean(list(values.values()), prompts if unit_of(prompts) == PROMPTS else None)
    if found is not None:
        return found
    value = float(np.mean(list(values.values())))
    return Estimate(value, math.nan, math.nan, math.nan, math.nan, len(values), 0, "one unit")


def difference(a: Mapping[Key, float], b: Mapping[Key, float]) -> Estimate:
    """The mean of `a` less that of `b`, over the images that both have."""
    return mean({key: value - b[key] for key, value in a.items() if key in b})


@dataclass(frozen=True, eq=False)
class SetScore:
    """The FID of a set of images, and what it is without each of its units in turn.

    Attributes:
        fid: of all of them.
        without: [units].
    """

    fid: float
    without: Array

    @property
    def estimate(self) -> Estimate:
        return self._jackknifed(self.fid, self.without)

    def less(self, other: SetScore) -> Estimate:
        """The paired difference of two sets of the same images' seeds and prompts."""
        return self._jackknifed(self.fid - other.fid, self.without - other.without)

    def _jackknifed(self, value: float, without: Array) -> Estimate:
        # each unit counts once: what is drawn is a prompt with its images
        found = statistics.jackknife(value, without, [1] * len(without))
        assert found is not None, "fewer than three units"
        return found


def features(row: Row, *more: Any) -> dict[Key, Array]:
    """The vectors that the job's FID was computed from, by their images' keys."""
    from research.metrics.saved_features import read_features

    saved = read_features(row.folder, row.result.metrics_info["fid"])
    assert saved is not None
    return dict(zip(image_keys(row, *more), saved.vectors.double().numpy(), strict=True))


def fid(vectors: Mapping[Key, Array], row: Row) -> SetScore:
    """The FID of images against the reference that a job's config names."""
    from research.metrics import FID
    from research.results.resampling import Frechet, replicate

    config = {key: value for key, value in setting(row, "metrics.fid").items() if key != "_target_"}
    _, reference = FID(**config).load("cpu")
    whole = np.stack(list(vectors.values()))
    prompts = [str(key[0]) for key in vectors]
    units: list[Any] = prompts if unit_of(prompts) == PROMPTS else list(vectors)
    which = np.unique([repr(unit) for unit in units], return_inverse=True)[1]
    gaussian = reference.gaussian
    distance = Frechet(whole, gaussian.mean.numpy(), gaussian.covariance.numpy())
    found = replicate([distance], [np.asarray(which, dtype=np.intp)], np.arange(which.max() + 1))
    return SetScore(found.full, found.without)


def has(rows: Sequence[Row], metric: str) -> bool:
    """Whether all jobs were scored by a metric."""
    return all(metric in row.metrics for row in rows)


def pictures(row: Row, count: int | None = None) -> list[NDArray[np.uint8]]:
    """The first images of a job."""
    found = []
    for image in row.result.images[:count]:
        with Image.open(row.image_path(image)) as picture:
            found.append(np.asarray(picture.convert("RGB")))
    return found


def write_csv(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """A line a mapping; floats to five digits."""
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with a line a mapping."""
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(row[name]) for name in head) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write_page(file: Path, title: str, text: str, *parts: str) -> None:
    """A Markdown page: a title, a paragraph and tables."""
    told = "\n\n".join([f"# {title}", textwrap.fill(" ".join(text.split()), 150), *(part.strip() for part in parts)])
    file.write_text(told + "\n", encoding="utf-8")


def canvas(*shape: int, size: tuple[float, float], **more: Any) -> tuple[Any, Any]:
    """A figure and its axes, without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(*(shape or (1, 1)), figsize=size, layout="constrained", **more)


def curve(axes: Any, x: Sequence[float], found: Sequence[Estimate], place: int, label: str) -> None:
    """Estimates along an axis with their intervals as bars; `place` chooses colour and shape."""
    own, y = look(place), np.array([estimate.value for estimate in found])
    ends = np.array([[estimate.low, estimate.high] for estimate in found]).T
    axes.errorbar(
        x, y, yerr=np.abs(ends - y), label=label, capsize=2, lw=1.4, elinewidth=1, ms=5,
        color=own.colour, marker=own.marker, ls=own.line,
    )  # fmt: skip


def tidy(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)


def step_ticks(axes: Any, steps: Sequence[float]) -> None:
    """A logarithmic axis with the values themselves on it, as many as have room."""
    box = axes.get_position()
    value_ticks(axes, steps, log=True, width=box.width * axes.figure.get_figwidth() * 72)


def show_grid(axes: Any, cells: Sequence[Sequence[NDArray[np.uint8] | None]], gap: int = 2) -> None:
    """Pictures of one size in rows and columns, white where there is none; ticks stand in the middle of rows and columns."""
    height, width = next(cell.shape[:2] for line in cells for cell in line if cell is not None)
    sheet = np.full((len(cells) * (height + gap) - gap, len(cells[0]) * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for i, line in enumerate(cells):
        for j, cell in enumerate(line):
            if cell is not None:
                top, left = i * (height + gap), j * (width + gap)
                sheet[top : top + height, left : left + width] = cell
    axes.imshow(sheet, interpolation="nearest")
    axes.set_xticks([j * (width + gap) + width / 2 for j in range(len(cells[0]))])
    axes.set_yticks([i * (height + gap) + height / 2 for i in range(len(cells))])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def save(figure: Any, file: Path) -> None:
    """Write a figure as a PNG in full colours, without its date. Logarithmic axes say that they are."""
    import matplotlib.pyplot as plt

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log" and (label := axis.get_label_text()) and "log axis" not in label:
                axis.set_label_text(f"{label}, log axis")
    figure.savefig(file, dpi=110, metadata={"Software": None}, pil_kwargs={"optimize": True})
    plt.close(figure)

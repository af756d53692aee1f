"""``results.csv``: one flat line a job."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from research.files import write_atomic
from research.results.axes import PREFERRED
from research.results.read import Row, Sweep

_TIMINGS = ("load", "encode", "denoise", "decode", "metrics", "total")
_COUNTS = ("nfe", "n_images", "images_per_second", "peak_memory_bytes")
_TEXTS = ("device", "created", "weights_sha256", "error")


def write_csv(sweep: Sweep, path: Path) -> None:
    """Writes job id and status, the varied settings, the usual settings, metrics, seconds, counts and provenance."""
    settings = [axis.key for axis in sweep.axes]
    settings += [k for k in (*PREFERRED, "seed") if k not in settings and any(k in r.settings for r in sweep.rows)]
    metrics = sorted({key for row in sweep.rows for key in row.metrics})
    timings = sorted(
        {key for row in sweep.rows for key in row.timings},
        key=lambda k: (_TIMINGS.index(k) if k in _TIMINGS else len(_TIMINGS), k),
    )
    header = [
        "job_id",
        "status",
        *settings,
        *metrics,
        *(f"seconds_{t}" for t in timings),
        *_COUNTS,
        *_TEXTS,
        "overrides",
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in sweep.rows:
        writer.writerow([_cell(v) for v in _values(row, settings, metrics, timings)])
    write_atomic(path, text.getvalue())


def _values(row: Row, settings: list[str], metrics: list[str], timings: list[str]) -> list[Any]:
    return [
        row.job_id,
        row.record.get("status"),
        *(row.settings.get(k) for k in settings),
        *(row.metrics.get(k) for k in metrics),
        *(row.timings.get(k) for k in timings),
        *(row.record.get(k) for k in _COUNTS),
        *(row.record.get(k) for k in _TEXTS[:-1]),
        row.error,
        tuple(row.record.get("overrides") or ()),
    ]


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.7g}"  # what comes after is noise; result.json keeps it
    return " ".join(str(v) for v in value) if isinstance(value, tuple) else value

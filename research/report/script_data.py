"""What the page's script works with: the jobs' settings, numbers and images, as JSON that no prompt can break out of."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from research.labels import value_label
from research.report.advice import Advice
from research.report.columns import TIMES, Measure, verdicts
from research.results.read import Row, Sweep

SCORES_AT_MOST = 60_000
IMAGES_AT_MOST = 200_000


def script_data(sweep: Sweep, columns: list[Measure], fronts: set[str], advice: Advice | None) -> str:
    """The JSON, with every ``<``, ``>`` and ``&`` written as an escape."""
    prompts: dict[str, int] = {}
    sets: dict[tuple[Any, ...], int] = {}
    kinds = [m.kinds(sweep.done) for m in columns]
    with_scores = sum(len(s) for r in sweep.done for s in r.scores.values()) <= SCORES_AT_MOST
    jobs = []
    images = 0
    for row in sweep.rows:
        images += len(row.images)
        listed = tuple(
            (i.file, prompts.setdefault(i.prompt or "", len(prompts)), i.seed)
            for i in (row.images if images <= IMAGES_AT_MOST else [])
        )
        numbers = [m.value(row) if row.done else None for m in columns]
        sure = [m.interval(row) if row.done else None for m in columns]
        jobs.append(
            {
                "id": row.job_id,
                "dir": row.folder.name,
                "s": [axis.values.index(row.settings.get(axis.key)) for axis in sweep.axes],
                "v": [None if v is None else float(f"{v:.7g}") for v in numbers],
                "i": [None if i is None else [float(f"{i.low:.5g}"), float(f"{i.high:.5g}")] for i in sure],
                "k": [_kind(row, m, k) for m, k in zip(columns, kinds, strict=True)],
                "t": [s.range if row.done and (s := m.spread(row)) is not None else "" for m in columns],
                "done": row.done,
                "error": row.error,
                "set": sets.setdefault(listed, len(sets)),
                "front": row.job_id in fronts,
                "cmd": _around_file(row),
                "all": job_command(row),
                "sc": _scores(row) if with_scores else {},
            }
        )
    data = {
        "name": sweep.name,
        "axes": [
            {"key": a.key, "label": a.label, "numeric": a.numeric, "values": [value_label(v) for v in a.values]}
            for a in sweep.axes
        ],
        "measures": [
            {"key": m.key, "label": m.label, "better": m.better, "time": m in TIMES, "apart": verdicts(sweep, m)}
            for m in columns
        ],
        "jobs": jobs,
        "sets": [[list(image) for image in found] for found in sets],
        "prompts": list(prompts),
        "use": advice.use.job_id if advice is not None and advice.use is not None else None,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # as escapes, so that no prompt ends the script it stands in
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _kind(row: Row, measure: Measure, kinds: Mapping[str, str]) -> str:
    """The letter of a number's provenance, where there are several; or that it is left out."""
    if row.done and measure.apart(row):
        return "out of line"
    return kinds.get(measure.provenance(row), "") if len(kinds) > 1 else ""


def _scores(row: Row) -> dict[str, list[float | None]]:
    """Scores of single images in the order of the job's images."""
    keys = [(i.prompt or "", i.seed) for i in row.images]
    return {
        name: [None if (v := found.get(key)) is None else float(f"{v:.5g}") for key in keys]
        for name, found in row.scores.items()
    }


# -- the command that makes a job, or one of its images alone, again


def job_command(row: Row) -> str:
    """The whole job, to be kept in a folder of whoever runs it."""
    return " ".join(["research", *(_word(o) for o in row.result.overrides if not o.startswith("output_dir="))])


def image_command(row: Row, file: str) -> str:
    """One image, made once more from its job's record: whatever decided how it looks is in there."""
    before, after = _around_file(row)
    return f"{before}{_word(file)}{after}"


def _around_file(row: Row) -> tuple[str, str]:
    """What stands before the file of an image in the command for it, and after it."""
    # a record names classes of the user's own only where they are trusted
    return f"research again {_word(row.folder.as_posix() + '/')}", " --trust-plugs" if row.result.plug_sources else ""


def _word(override: str) -> str:
    return shlex.quote(override)

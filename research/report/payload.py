"""What the page's script works with: the jobs' settings, numbers and images, as JSON that no prompt can break out of."""

from __future__ import annotations

import json
from typing import Any

from research.labels import value_label
from research.report.advice import Advice
from research.report.columns import Measure
from research.report.commands import ALONE, image_prefix, job_command, prompt_word
from research.results.read import Row, Sweep

SCORES_AT_MOST = 60_000
IMAGES_AT_MOST = 200_000


def payload(sweep: Sweep, columns: list[Measure], fronts: set[str], advice: Advice | None) -> str:
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
            (str(i["file"]), prompts.setdefault(str(i.get("prompt") or ""), len(prompts)), i.get("seed"))
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
                "k": [k.get(m.provenance(row), "") if len(k) > 1 else "" for m, k in zip(columns, kinds, strict=True)],
                "done": row.done,
                "error": row.error,
                "set": sets.setdefault(listed, len(sets)),
                "front": row.job_id in fronts,
                "cmd": image_prefix(row),
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
        "measures": [{"key": m.key, "label": m.label, "better": m.better} for m in columns],
        "jobs": jobs,
        "sets": [[list(image) for image in found] for found in sets],
        "prompts": list(prompts),
        "words": [prompt_word(p) for p in prompts],
        "alone": ALONE,
        "use": advice.use.job_id if advice is not None and advice.use is not None else None,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _scores(row: Row) -> dict[str, list[float | None]]:
    """Scores of single images in the order of the job's images."""
    keys = [(str(i.get("prompt") or ""), i.get("seed")) for i in row.images]
    return {
        name: [None if (v := found.get(key)) is None else float(f"{v:.5g}") for key in keys]
        for name, found in row.scores.items()
    }

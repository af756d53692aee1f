"""What a sweep's numbers were made with, in words: settings in common, weights, metrics, versions, device, warnings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from research.labels import count, value_label
from research.report.columns import Measure
from research.results.axes import flatten
from research.results.read import Row, Sweep

# where files go and how runs are logged says nothing about the images
_LEFT_OUT = ("output_dir", "sweep_name", "tracker", "hydra", "runtime", "on_failure", "resume", "experiment", "metrics")
_VALUES_AT_MOST = 3
# of a metric's info: results and files of the one job, and what is too long to list
_OF_THE_JOB = (
    "warnings",
    "per_image",
    "per_image_of",
    "versions",
    "preprocess",
    "bias_estimate",
    "features_file",
    "features_sha256",
)


def fixed_settings(sweep: Sweep) -> list[tuple[str, str]]:
    """Settings that are the same in all jobs; prompts in full."""
    pairs = []
    for key in dict.fromkeys(k for row in sweep.rows for k in row.settings):
        values = {row.settings.get(key) for row in sweep.rows}
        if key.split(".")[0] in _LEFT_OUT or len(values) > 1:
            continue
        value = values.pop()
        if value is None or value == ():
            continue
        text = " · ".join(str(v) for v in value) if isinstance(value, tuple) else value_label(value)
        pairs.append((key, text))
    return pairs


def made_with(sweep: Sweep) -> list[tuple[str, str]]:
    """Weights, metric provenance, versions, device and warnings; where jobs differ, all that occur."""
    found: dict[str, dict[str, None]] = {}

    def note(name: str, value: Any) -> None:
        if value not in (None, "", [], {}):
            found.setdefault(name, {})[_short(value)] = None

    warned: dict[str, str] = {}
    for row in sweep.done:
        result = row.result
        note("model weights", result.weights_sha256)
        note("device", result.device)
        note("dtype", result.dtype)
        for metric, info in result.metrics_info.items():
            shared = {k: v for k, v in info.items() if k not in _OF_THE_JOB}
            for key, value in flatten(shared).items():
                if "preprocess" not in key and not isinstance(value, tuple):
                    note(f"{metric}: {key.replace('.', ' ').replace('_', ' ')}", value)
        for library, version in result.versions.items():
            note(library, version)
        for warning in result.warnings:
            note("warning", _same_but_for_numbers(warning, warned))
    pairs = []
    for name, values in found.items():
        shown = list(values)
        if name == "warning":
            pairs += [("warning", text) for text in shown[:10]]
            continue
        more = f" and {len(shown) - _VALUES_AT_MOST} more" if len(shown) > _VALUES_AT_MOST else ""
        differ = " (jobs differ: compare their numbers with care)" if len(shown) > 1 else ""
        pairs.append((name, ", ".join(shown[:_VALUES_AT_MOST]) + more + differ))
    return pairs


def provenance_notes(rows: Sequence[Row], columns: Sequence[Measure]) -> list[str]:
    """A line for each number that was not computed with the same things in all jobs, and what its letters mean."""
    found = []
    for measure in columns:
        kinds = measure.kinds(rows)
        if len(kinds) < 2:
            continue
        counts = Counter(kinds[measure.provenance(r)] for r in rows if measure.value(r) is not None)
        text = ", ".join(
            f"{letter}: {count(n, 'job')} ({_meant(rows, measure, kinds, letter)})"
            for letter, n in sorted(counts.items())
        )
        found.append(
            f"{measure.label} is not of one provenance: {text}. Only numbers with the same letter may be compared; "
            "best values, fronts and advice are among those of letter a."
        )
    return found


def _meant(rows: Sequence[Row], measure: Measure, kinds: dict[str, str], letter: str) -> str:
    """What sets the jobs of a letter apart, in a few words."""
    row = next(r for r in rows if measure.value(r) is not None and kinds[measure.provenance(r)] == letter)
    if measure.spread(row) is not None:
        return measure.provenance(row) or "device unknown"
    info = row.info(measure.key)
    words = []
    for key in ("model", "features", "reference", "n_images"):
        value = info.get(key)
        name = value.get("name") or str(value.get("sha256") or "")[:8] if isinstance(value, dict) else value
        if name not in (None, ""):
            words.append(f"{key.replace('_', ' ')} {name}")
    return ", ".join(words) or "nothing recorded"


def _same_but_for_numbers(text: str, seen: dict[str, str]) -> str:
    """The first text of its kind, for one that differs in its numbers alone."""
    return seen.setdefault(re.sub(r"[\d.]+", "#", text), text)


def _short(value: Any) -> str:
    text = str(value)
    is_hash = len(text) == 64 and all(c in "0123456789abcdef" for c in text)
    return text[:16] + "…" if is_hash else text

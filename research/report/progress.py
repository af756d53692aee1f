"""How far a sweep is, from its files alone: jobs that are done, that run (by their claims), and that are still to come."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.jobs.record import DamagedRecord, NoRecord, find_result, read_sweep_record
from research.labels import value_label


@dataclass(frozen=True)
class Running:
    """A job that a process has claimed.

    Attributes:
        made, wanted: images so far and in all; `wanted` is 0 where the job has not said yet.
        silent: seconds since its process last gave a sign of life.
    """

    job_id: str
    label: str
    made: int
    wanted: int
    silent: float


@dataclass(frozen=True)
class Progress:
    """Counts of a moment; `total` is None where nothing says how many jobs there are to be."""

    done: int = 0
    failed: int = 0
    running: list[Running] = field(default_factory=list)
    total: int | None = None
    version: str = ""  # changes whenever a record does

    @property
    def finished(self) -> bool:
        """Whether everything that was asked for has a record, and nothing runs."""
        return not self.running and self.total is not None and self.done + self.failed >= self.total > 0

    def line(self) -> str:
        """In a line for the terminal."""
        of = f" of {self.total}" if self.total is not None else ""
        parts = [f"{self.done + self.failed}{of} jobs have a result"]
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{len(self.running)} running"] if self.running else []
        return ", ".join(parts)


def progress(directory: Path, seen: dict[str, tuple[int, bool]] | None = None) -> Progress:
    """Looks at the folder of a sweep; one that is not there yet has no jobs.

    Args:
        seen: of earlier calls, time of modification and status of each record, so that records are read once.
    """
    seen = {} if seen is None else seen
    done = failed = 0
    ids: set[str] = set()
    running = []
    stamps = []
    for folder in _folders(directory):
        try:
            stamp = (folder / "result.json").stat().st_mtime_ns
        except OSError:
            if (found := _running(folder)) is not None:
                running.append(found)
            continue
        if seen.get(folder.name, (0, False))[0] != stamp:
            seen[folder.name] = (stamp, _status(folder) == "done")
        ids.add(folder.name)
        stamps.append(stamp)
        done, failed = done + seen[folder.name][1], failed + (not seen[folder.name][1])
    planned = _planned(directory)
    total = len(planned | ids | {r.job_id for r in running}) if planned else None
    return Progress(done, failed, running, total, f"{len(stamps)}-{max(stamps, default=0)}")


def _folders(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as found:
            return sorted(Path(e.path) for e in found if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return []


def _running(folder: Path) -> Running | None:
    try:
        claims = [folder / name for name in os.listdir(folder) if name.startswith(".claim.")]
        beat = max((file.stat().st_mtime for file in claims), default=None)
    except OSError:
        return None
    if beat is None:
        return None
    config = _config(folder)
    prompts, each = config.get("prompts"), config.get("images_per_prompt")
    wanted = len(prompts) * (each if isinstance(each, int) else 1) if isinstance(prompts, list) else 0
    made = sum(1 for _ in (folder / "images").glob("*.png"))
    return Running(folder.name, _label(config), made, wanted, max(0.0, time.time() - beat))


def _label(config: dict[str, Any]) -> str:
    """The settings that sweeps are mostly about."""

    def part(group: str, key: str) -> Any:
        found = config.get(group)
        return found.get(key) if isinstance(found, dict) else None

    levels = part("sigmas", "name") or str(part("sigmas", "_target_") or "model").rpartition(".")[2]
    searched = part("sampler", "name") or str(part("sampler", "_target_") or "loop").rpartition(".")[2]
    named = {
        "": part("scheduler", "name"),
        "sigmas": None if levels == "model" else levels,
        "sampler": None if searched == "loop" else searched,
        "guidance scale": part("guidance", "scale"),
        "steps": config.get("steps"),
    }
    return ", ".join(f"{name} {value_label(value)}".strip() for name, value in named.items() if value is not None)


def _config(folder: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.load(
            (folder / "config.yaml").read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _status(folder: Path) -> str:
    result = find_result(folder)
    return result.status if result is not None else "damaged"


def _planned(directory: Path) -> set[str]:
    try:
        return set(read_sweep_record(directory).jobs)
    except (NoRecord, DamagedRecord):
        return set()

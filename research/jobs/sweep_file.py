"""The file ``sweep.json`` in the folder of a sweep: which version of the project keeps its jobs there, in which form, and which
jobs were last asked for, so that a live view knows how many there are to come."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path

from research.errors import ConfigError
from research.files import remove_leftovers
from research.jobs.store import RESULT, write
from research.package import VERSION

FORMAT = 1  # of job folders; one more when an older version could misread them
MARKER = "sweep.json"
_log = logging.getLogger(__name__)


def mark(sweep_dir: Path, ids: Collection[str]) -> None:
    """See that a sweep's folder is one that this version can go on with, and say whose else it is.

    Args:
        sweep_dir: the folder; it is there.
        ids: of the jobs that are going to be kept in it.

    Raises:
        ConfigError: a later version of the project has written there.
        StoreError: the folder cannot be written.
    """
    for folder in (sweep_dir, sweep_dir / "plots"):
        remove_leftovers(folder)
    file = sweep_dir / MARKER
    found = _read(file)
    own = {"format": FORMAT, "research": VERSION, "jobs": sorted(ids)}
    if found is None:
        write(file, json.dumps(own, indent=1).encode(), durable=True)
    elif found[0] > FORMAT:
        raise ConfigError(
            f"output_dir: {sweep_dir} was written by research {found[1]} (format {found[0]}); this is {VERSION}, "
            f"which reads format {FORMAT}. Accepted is another output_dir or sweep_name, or that version."
        )
    elif found[2] != own["jobs"]:
        write(file, json.dumps(own, indent=1).encode())
    if len(ids) > 1 and (others := _others(sweep_dir, ids)):
        _log.info(
            "%s holds %d job%s of other settings too; the report shows all (sweep_name=NAME keeps sweeps apart)",
            *(sweep_dir, others, "s" * (others != 1)),
        )


def _read(file: Path) -> tuple[int, str, object] | None:
    """Format, version and jobs; None where there is no such file, or a damaged one."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return int(found["format"]), str(found.get("research")), found.get("jobs")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        _log.warning("%s cannot be read; it is written again", file)
        return None


def _others(sweep_dir: Path, ids: Collection[str]) -> int:
    return sum(folder.name not in ids and (folder / RESULT).is_file() for folder in sweep_dir.iterdir())

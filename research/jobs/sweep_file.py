"""The file ``sweep.json`` in the folder of a sweep: which version of the project keeps its jobs there, in which form, and which
jobs were last asked for, so that a live view knows how many there are to come."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from research.errors import ConfigError
from research.files import remove_leftovers
from research.jobs.record import (
    FORMAT,
    RESULT,
    DamagedRecord,
    NoRecord,
    SweepRecord,
    read_sweep_record,
    write_sweep_record,
)
from research.package import VERSION

_log = logging.getLogger(__name__)


class ReportSettings(NamedTuple):
    """How the report of a sweep is to judge its jobs, as the config's section ``report`` has it.

    Attributes:
        margin: by metric, see `research.results.scales`.
        unit: ``prompts`` or ``seeds``, see `research.statistics.unit_of`.
        budget: what a setting may cost, as the section ``budget`` has it; see `research.results.budget`.
    """

    margin: Mapping[str, float | str] = {}
    unit: str | None = None
    budget: Mapping[str, float] = {}


AS_DEFAULT = ReportSettings()


def take_sweep_folder(sweep_dir: Path, ids: Collection[str], report: ReportSettings = AS_DEFAULT) -> None:
    """See that a sweep's folder is one that this version can go on with, note the jobs that are to come, and say whose else
    it is. What killed processes have left of half-written files is removed.

    Args:
        sweep_dir: the folder; it is there.
        ids: of the jobs that are going to be kept in it.
        report: kept for the report.

    Raises:
        ConfigError: a later version of the project has written there.
        StoreError: the folder cannot be written.
    """
    for folder in (sweep_dir, sweep_dir / "plots"):
        remove_leftovers(folder)
    own = SweepRecord(
        format=FORMAT,
        research=VERSION,
        jobs=sorted(ids),
        margin=dict(report.margin),
        unit=report.unit,
        budget=dict(report.budget),
    )
    try:
        found = read_sweep_record(sweep_dir)
    except NoRecord:
        write_sweep_record(sweep_dir, own, durable=True)
    except DamagedRecord as error:
        _log.warning("%s It is written again", error)
        write_sweep_record(sweep_dir, own, durable=True)
    else:
        if found.format > FORMAT:
            raise ConfigError(
                f"output_dir: {sweep_dir} was written by research {found.research} (format {found.format}); this is "
                f"{VERSION}, which reads format {FORMAT}. Accepted is another output_dir or sweep_name, "
                "or that version."
            )
        if (found.jobs, found.margin, found.unit, found.budget) != (own.jobs, own.margin, own.unit, own.budget):
            write_sweep_record(sweep_dir, own)
    others = sum(folder.name not in ids and (folder / RESULT).is_file() for folder in sweep_dir.iterdir())
    if len(ids) > 1 and others:
        _log.info(
            "%s holds %d job%s of other settings too; the report shows all (sweep_name=NAME keeps sweeps apart)",
            *(sweep_dir, others, "s" * (others != 1)),
        )

"""A job: one composed configuration, and its identity."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from research.jobs.identity import ID_LENGTH, job_digest, sources_of
from research.jobs.overrides import as_written
from research.jobs.record import JobSettings
from research.jobs.store import JobFolder


@dataclass
class Job:
    """A job composed and checked: its config, and the overrides that it was composed of."""

    config: dict[str, Any]
    point: list[str] = field(default_factory=list)
    id: str = ""
    warnings: list[str] = field(default_factory=list)  # of the linter, for the record
    digest: str = ""  # the whole hash that the id is the beginning of
    sources: dict[str, str] = field(default_factory=dict)  # of the user's own plugs, as they were when it was planned

    def __post_init__(self) -> None:
        if not self.digest:
            self.sources = sources_of(self.config)
            self.digest = job_digest(self.config, sources=self.sources)
        self.id = self.id or self.digest[:ID_LENGTH]

    @cached_property
    def settings(self) -> JobSettings:
        """The config as an object."""
        return JobSettings.of(self.config)

    @property
    def overrides(self) -> list[str]:
        """The overrides as a person writes them."""
        return [as_written(line) for line in self.point]

    @property
    def folder(self) -> JobFolder:
        return JobFolder(Path(self.config["output_dir"], self.config["sweep_name"], self.id))

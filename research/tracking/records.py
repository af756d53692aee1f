"""A job's folder as what a W&B run of it holds: plain data, made the same way whenever and wherever it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.errors import UserError
from research.tracking import fields

FORMAT = 1  # raised when records of old jobs are to be sent again
DIGEST = "mirror/digest"  # of the whole record: what a server holds once all of it has arrived
MEDIA = "mirror/media"  # of images and tables, logged beside them


class RecordError(UserError):
    """A folder is not that of a finished job."""


@dataclass(frozen=True)
class Record:
    """What is logged of a job. Keys group by what stands before their slash."""

    run_id: str
    job_id: str
    name: str
    group: str
    job_type: str
    tags: list[str]
    commit: str | None
    done: bool
    config: dict[str, Any]
    curve: list[dict[str, float]]  # one point a stage
    images: list[dict[str, Any]]  # file, caption, sha256
    columns: list[str]
    samples: list[list[Any]]  # one row an image
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The names of all images, shown or not."""
        return [str(row[0]) for row in self.samples]

    @property
    def has_media(self) -> bool:
        return bool(self.images or self.samples)

    @property
    def media(self) -> str:
        """Hash of the images and the table, 16 hex digits."""
        return _hash([[image["sha256"], image["caption"]] for image in self.images], self.columns, self.samples)

    @property
    def digest(self) -> str:
        """Hash of all that is logged, 16 hex digits."""
        named = (self.name, self.group, self.job_type, self.tags, self.commit)
        return _hash(FORMAT, named, self.config, self.curve, self.summary, self.media)


def read_record(job: Path, *, tags: list[str] | None = None, max_images: int = 16) -> Record:
    """The record of a finished job, done or failed.

    Args:
        job: its folder.
        tags: added to its own.
        max_images: the first so many are shown; all are in the table.

    Raises:
        RecordError: no ``result.json``, or not one of a job.
    """
    result = read_result(job)
    config = result.get("config") or {}
    columns, samples = fields.samples(result)
    return Record(
        run_id=run_id(result),
        job_id=str(result["job_id"]),
        name=fields.run_name(result),
        group=str(result.get("sweep_name") or job.parent.name),
        job_type=fields.snake(fields.target(config.get("task"))) or "sample",
        tags=fields.tags(result, tags or []),
        commit=result.get("git_commit"),
        done=result.get("status") == "done",
        config=fields.config(result, config),
        curve=list(fields.curve(job)),
        images=fields.images(job, result, max_images),
        columns=columns,
        samples=samples,
        summary=fields.summary(result),
    )


def read_result(job: Path) -> dict[str, Any]:
    """A job's ``result.json``.

    Raises:
        RecordError: there is none, or it is not one of a job.
    """
    file = job / "result.json"
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{job}: has no result.json; accepted is the folder of a job that has ended.") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{file}: cannot be read ({error}); accepted is what a job has written.") from error
    if not isinstance(result, dict) or not isinstance(result.get("job_id"), str):
        raise RecordError(f"{file}: has no job_id; accepted is what a job has written.")
    return result


def run_id(result: Mapping[str, Any]) -> str:
    """The same for the same job of the same sweep, so that logging it again never makes a second run."""
    sweep = hashlib.sha256(str(result.get("sweep_name")).encode()).hexdigest()
    return f"{result['job_id']}-{sweep[:6]}"


def _hash(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]

"""The W&B server: whether it answers, and what it holds: of a sweep, to know what is missing; of one run, to know that it has
arrived. The first is asked without wandb, by any process; the second in the process that talks to W&B."""

from __future__ import annotations

import functools
import http.client
import json
import os
import socket
import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, getproxies, proxy_bypass, urlopen

from research.tracking.mirrored_run import DIGEST, MirroredRun
from research.tracking.scrub import pixels

_PAGE = 500


def reach(timeout: float) -> None:
    """See that the server takes a connection: W&B's own client goes on trying where none is taken.

    Raises:
        ConnectionError: it does not.
    """
    base = server()
    address = urlparse(base)
    if address.scheme in getproxies() and not proxy_bypass(address.hostname or ""):
        return  # it is for the proxy to reach it
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=timeout):
            pass
    except OSError as error:
        raise ConnectionError(f"{base} cannot be reached ({error.strerror or error})") from error


def server() -> str:
    """The server that is spoken to."""
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def answers(timeout: float) -> bool:
    """Whether the server gives any answer within so many seconds; a refusal is one, 500 and up are none."""
    try:
        with urlopen(Request(server(), method="HEAD"), timeout=timeout):
            return True
    except urllib.error.HTTPError as error:
        return error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR
    except (OSError, ValueError, http.client.HTTPException):
        return False


# -- what it holds


class NotConfirmed(Exception):
    """The server does not hold what was sent to it."""


@dataclass(frozen=True)
class Remote:
    """A run as a server holds it."""

    run_id: str
    group: str | None
    job_id: str | None
    digest: str | None


def overview(project: str, entity: str | None, groups: Sequence[str], timeout: float) -> list[Remote]:
    """The runs of sweeps on the server, in a request for each 500; none where there is no such project.

    Raises:
        Exception: whatever W&B raises: no connection, no answer within ``timeout`` seconds, a refused key.
    """
    reach(timeout)
    found = _runs(f"{entity}/{project}" if entity else project, {"group": {"$in": list(groups)}}, timeout)
    return [
        Remote(run.id, run.group, _text(dict(run.config).get("job_id")), _text(dict(run.summary).get(DIGEST)))
        for run in found
    ]


def confirm(path: str, job: Path, record: MirroredRun, scratch: Path, timeout: float) -> None:
    """See that a run has arrived whole, then note its digest with it: from here on it counts as mirrored.

    Args:
        path: ``entity/project/run``.
        job: its folder.
        record: what was logged.
        scratch: a folder for pictures that have to be sent again.
        timeout: seconds for each request; there are three.

    Raises:
        NotConfirmed: the server holds less.
        Exception: whatever W&B raises.
    """
    project, _, name = path.rpartition("/")
    runs = _runs(project, {"name": name}, timeout)
    if not runs:
        raise NotConfirmed("the server does not know the run")
    run = runs[0]
    rows, held = len(record.curve) + record.has_media, int(run.historyLineCount or 0)
    if held < rows:
        raise NotConfirmed(f"the server holds {held} of {rows} rows")
    summary = dict(run.summary)
    wanted = [*record.summary, *(["images"] if record.images else []), *(["samples"] if record.samples else [])]
    if missing := [key for key in wanted if key not in summary]:
        raise NotConfirmed(f"the server lacks {', '.join(missing[:3])}")
    if record.has_media:
        _complete(run, job, record, summary, scratch)
    run.summary[DIGEST] = record.digest
    if rows and "_step" not in summary:  # which a client that has no row left to send takes away
        run.summary["_step"] = held - 1
    run.summary.update()


def _complete(run: Any, job: Path, record: MirroredRun, summary: Mapping[str, Any], scratch: Path) -> None:
    """Send the media files whose row has arrived without them: a server takes rows and files apart."""
    held = {file.name for file in run.files(per_page=_PAGE)}
    names = [str(name) for name in _plain(summary.get("images")).get("filenames") or []]
    table = _plain(summary.get("samples")).get("path")
    if len(names) != len(record.images) or (record.samples and not table):
        raise NotConfirmed("the server names other media files")
    for name, entry in zip(names, record.images, strict=True):
        if name not in held:
            file = _place(scratch, name)
            pixels(job / entry["file"]).save(file, format="PNG")
            run.upload_file(str(file), root=str(scratch))
    if table and table not in held:
        file = _place(scratch, str(table))
        content = {"columns": record.columns, "data": record.samples}
        file.write_text(json.dumps(content, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")
        run.upload_file(str(file), root=str(scratch))


def _place(scratch: Path, name: str) -> Path:
    """Where a file of the server is made ready; a name that leads elsewhere is refused."""
    file = (scratch / name).resolve()
    if not file.is_relative_to(scratch.resolve()):
        raise NotConfirmed(f"the server names a file {name!r}")
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _plain(value: Any) -> dict[str, Any]:
    """A part of a summary, which W&B gives as an object of its own."""
    return dict(value.items()) if hasattr(value, "items") else {}


@functools.cache
def _api(timeout: float) -> Any:
    import wandb

    return wandb.Api(timeout=max(1, round(timeout)))


def _runs(path: str, filters: Mapping[str, Any], timeout: float) -> list[Any]:
    try:
        api = _api(timeout)
        api.flush()  # it would give what it was told before
        return list(api.runs(path, filters=dict(filters), per_page=_PAGE, lazy=False))
    except ValueError as error:
        if "Could not find project" in str(error):
            return []
        raise


def _text(value: Any) -> str | None:
    return str(value) if value is not None else None

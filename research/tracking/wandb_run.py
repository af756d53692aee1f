"""One job's record as one W&B run, on disk or on a server."""

from __future__ import annotations

import json
import netrc
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from research.tracking.mirrored_run import DIGEST, MEDIA, MirroredRun, mirrored_run
from research.tracking.scrub import pixels
from research.tracking.wandb_server import confirm, reach, server


def log_run(job: Path, settings: Mapping[str, Any]) -> str | None:
    """Writes a job's run, going on with an earlier one of the same job; returns a warning for the user, or None.

    With ``mode: online`` the run is whole on the server when this returns None.

    Raises:
        Exception: whatever reading the folder or W&B raises.
    """
    record = mirrored_run(job, tags=list(settings["tags"]), max_images=settings["max_images"])
    if settings["mode"] == "online" and has_key():
        _online(job, record, settings)
        return None
    _offline(job, record, settings)
    if settings["mode"] == "online":
        return "mode=online but no key was found (wandb login); runs are written offline"
    return None


def has_key() -> bool:
    """Whether W&B would find a key without asking: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(server()).hostname or ""
    files = [os.environ.get("NETRC", ""), str(Path.home() / ".netrc"), str(Path.home() / "_netrc")]
    for file in files:
        try:
            if file and netrc.netrc(file).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _offline(job: Path, record: MirroredRun, settings: Mapping[str, Any]) -> None:
    """Write the run to disk, in place of an earlier one: offline, runs of one id do not merge."""
    directory = Path(settings["directory"] or job.parent)
    directory.mkdir(parents=True, exist_ok=True)
    for old in (directory / "wandb").glob(f"offline-run-*-{record.run_id}"):
        shutil.rmtree(old, ignore_errors=True)
    _write(job, record, settings, "offline", directory)


def _online(job: Path, record: MirroredRun, settings: Mapping[str, Any]) -> None:
    """Send the run and see that it has arrived."""
    reach(settings["request_timeout"])
    with tempfile.TemporaryDirectory(prefix="run-", dir=".", ignore_cleanup_errors=True) as folder:
        path = _write(job, record, settings, "online", Path(folder))
        confirm(path, job, record, Path(folder), settings["request_timeout"])


def _write(job: Path, record: MirroredRun, settings: Mapping[str, Any], mode: str, directory: Path) -> str:
    """Returns the run's path on the server, ``entity/project/run``."""
    import wandb

    agent = bool(os.environ.get("WANDB_SWEEP_ID"))  # an agent of W&B has named the run already
    run = wandb.init(
        mode="online" if mode == "online" else "offline",  # always given: otherwise W&B asks for a login
        project=None if agent else settings["project"],
        entity=None if agent else settings["entity"],
        dir=directory,
        id=None if agent else settings.get("run_id") or record.run_id,
        resume="allow" if mode == "online" else None,
        name=record.name,
        group=record.group,
        job_type=record.job_type,
        tags=record.tags,
        config=record.config,
        reinit="create_new",
        settings=_client_settings(record, settings, mode),
    )
    try:
        _log(run, job, record)
        if mode == "offline":
            run.summary[DIGEST] = record.digest
        elif settings["artifacts"] and record.done:
            _log_artifact(run, job, record, directory / "artifact")
    finally:
        run.finish(exit_code=0 if record.done else 1)
    return f"{run.entity}/{run.project}/{run.id}"


def _log(run: Any, job: Path, record: MirroredRun) -> None:
    """The curve's rows, then one of images and table; rows that a server holds already are not given twice."""
    for prefix in ("curve", "recorded"):
        run.define_metric(f"{prefix}/*", step_metric="curve/log_snr", step_sync=True)
    begun = run.starting_step  # 0 for a new run
    for point in record.curve[begun:]:
        run.log(point)
    # a job that was run or scored again gets another row of them
    if record.has_media and not (begun > len(record.curve) and run.summary.get(MEDIA) == record.media):
        run.log({**_media(job, record), MEDIA: record.media})
    stale = [key for key in dict(run.summary) if begun and _of_the_job(key) and key not in record.summary]
    for key in stale:
        del run.summary[key]
    run.summary.update(record.summary)


def _of_the_job(key: str) -> bool:
    return not key.startswith(("_", "curve/", "recorded/", "mirror/")) and key not in ("images", "samples")


def _media(job: Path, record: MirroredRun) -> dict[str, Any]:
    import wandb

    images = [wandb.Image(pixels(job / entry["file"]), caption=entry["caption"] or None) for entry in record.images]
    found: dict[str, Any] = {"images": images} if images else {}
    if record.samples:

        class FileTable(wandb.Table):
            # a file of the run; as an artifact it would tell the server a local path, and take eight more requests
            _log_type = "table-file"

        found["samples"] = FileTable(columns=list(record.columns), data=record.samples)
    return found


def _log_artifact(run: Any, job: Path, record: MirroredRun, folder: Path) -> None:
    """The pictures, the settings and the curve, as a version of ``job-<id>``: the same content is the same version."""
    import wandb

    artifact = wandb.Artifact(
        f"job-{record.job_id}", type="sampling-job", metadata={"group": record.group, "name": record.name}
    )
    (folder / "images").mkdir(parents=True)
    for name in record.files:
        pixels(job / "images" / name).save(folder / "images" / name, format="PNG")
    for name, content in (("config", record.config), ("summary", record.summary), ("curve", record.curve)):
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, default=str)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    for file in sorted(folder.glob("**/*.*")):
        # neither copied nor by its whole path: both would be told to the server
        artifact.add_file(os.path.relpath(file), name=file.relative_to(folder).as_posix(), policy="immutable")
    run.log_artifact(artifact)


def _client_settings(record: MirroredRun, settings: Mapping[str, Any], mode: str) -> Any:
    import wandb

    limits: dict[str, Any] = {"init_timeout": 20.0}
    if mode == "online":
        request, total = float(settings["request_timeout"]), float(settings["time_limit"])
        limits = {"init_timeout": request, "finish_timeout": max(request, total / 2), "finish_timeout_raises": True}
        for kind in ("graphql", "file_stream", "file_transfer"):
            limits[f"x_{kind}_timeout_seconds"] = request
            limits[f"x_{kind}_retry_max"] = settings["retries"]
            limits[f"x_{kind}_retry_wait_min_seconds"] = 0.5
            limits[f"x_{kind}_retry_wait_max_seconds"] = 5.0
    return wandb.Settings(
        silent=True,
        console="off",
        # a kill in the first 15 s would otherwise leave an unreadable run
        x_transaction_log_flush_interval=1.0,
        # what describes this machine (host, user, paths, command line, packages) stays on it
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        program="research",
        host="",
        disable_git=True,
        git_commit=record.commit,
        disable_code=True,
        save_code=False,
        **limits,
    )

"""One job's folder as one W&B run."""

from __future__ import annotations

import hashlib
import json
import netrc
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from research.tracking.scrub import scrub, scrub_text

NAME_AT_MOST, TAG_AT_MOST = 100, 64


def log_run(job: Path, settings: Mapping[str, Any]) -> str | None:
    """Writes a job's run, replacing an earlier one of the same job; returns a warning for the user, or None.

    Raises:
        Exception: whatever reading the folder or W&B raises.
    """
    result = json.loads((job / "result.json").read_text(encoding="utf-8"))
    mode, warning = settings["mode"], None
    if mode == "online" and not has_key():
        mode, warning = "offline", "mode=online but no key was found (wandb login); runs are written offline"
    if mode == "online":
        try:
            _write(job, result, settings, "online")
            return None
        except Exception as error:  # no network, a refused key, a server that is down
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            mode, warning = "offline", f"cannot log online ({line}); runs are written offline"
    _write(job, result, settings, mode)
    return warning


def run_id(result: Mapping[str, Any]) -> str:
    """The same for the same job of the same sweep, so that logging it again never makes a second run."""
    sweep = hashlib.sha256(str(result.get("sweep_name")).encode()).hexdigest()
    return f"{result['job_id']}-{sweep[:6]}"


def has_key() -> bool:
    """Whether W&B would find a key without asking: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    files = [os.environ.get("NETRC", ""), str(Path.home() / ".netrc"), str(Path.home() / "_netrc")]
    for file in files:
        try:
            if file and netrc.netrc(file).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _write(job: Path, result: Mapping[str, Any], settings: Mapping[str, Any], mode: str) -> None:
    import wandb

    directory = Path(settings["directory"] or job.parent)
    directory.mkdir(parents=True, exist_ok=True)
    identity = run_id(result)
    for old in (directory / "wandb").glob(f"offline-run-*-{identity}"):
        shutil.rmtree(old, ignore_errors=True)  # offline, runs of one id do not merge
    config = scrub(result.get("config") or {})
    done = result.get("status") == "done"
    run = wandb.init(
        mode="online" if mode == "online" else "offline",  # always said: otherwise W&B asks for a login
        project=settings["project"],
        entity=settings["entity"],
        dir=directory,
        id=identity,
        resume="allow" if mode == "online" else None,
        name=run_name(result),
        group=str(result.get("sweep_name") or job.parent.name),
        job_type="sample",
        tags=_tags(result, settings["tags"]),
        config={**config, "job_id": result["job_id"]},
        reinit="create_new",
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=20,
            # a kill in the first 15 s would otherwise leave an unreadable run
            x_transaction_log_flush_interval=1.0,
            # what describes this machine (host, user, paths, command line, packages) stays on it
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            disable_git=True,
            disable_code=True,
            save_code=False,
        ),
    )
    try:
        for prefix in ("curve", "recorded"):
            run.define_metric(f"{prefix}/*", step_metric="curve/log_snr")
        for point in _curve(job):
            run.log(point)
        if images := _images(job, result, settings["max_images"]):
            run.log({"images": images})
        run.summary.update(_summary(result))
    finally:
        run.finish(exit_code=0 if done else 1)


def run_name(result: Mapping[str, Any]) -> str:
    """What was set for this job, shortened: "ddim scale=3 steps=10", or the job's id."""
    parts = []
    for override in result.get("overrides") or []:
        key, _, value = str(override).lstrip("+").partition("=")
        value = scrub_text(value)
        short = value if len(value) <= 24 else value[:23] + "…"
        parts.append(
            short if key in ("scheduler", "guidance", "model") else f"{key.rsplit('.', 1)[-1]}={short}"
        )
    return " ".join(parts)[:NAME_AT_MOST] or str(result["job_id"])


def _tags(result: Mapping[str, Any], added: list[str]) -> list[str]:
    config = result.get("config") or {}
    scheduler = (config.get("scheduler") or {}).get("name")
    guidance = str((config.get("guidance") or {}).get("_target_") or "").rsplit(".", 1)[-1]
    tags = [*added, scheduler, guidance, None if result.get("status") == "done" else "failed"]
    return list(dict.fromkeys(str(tag)[:TAG_AT_MOST] for tag in tags if tag))


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    summary: dict[str, Any] = {"status": result.get("status")}
    if result.get("error"):
        summary["error"] = scrub_text(str(result["error"]))
    for name, value in (result.get("metrics") or {}).items():
        summary[name] = value
    for name, value in (result.get("timings") or {}).items():
        summary[f"seconds/{name}"] = value
    for name, value in (result.get("nfe_by_branch") or {}).items():
        summary[f"nfe_by_branch/{name}"] = value
    for name in ("nfe", "n_images", "images_per_second", "peak_memory_bytes", "device", "weights_sha256"):
        if result.get(name) is not None:
            summary[name] = result[name]
    return summary


def _curve(job: Path) -> Iterator[dict[str, float]]:
    """One point a stage: t, sigma, log_snr, seconds, and what recorders added with as many values."""
    try:
        trace = json.loads((job / "trace.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    stages = trace.get("stages") or []
    recorded = {name: values for name, values in trace.items() if name != "stages" and _fits(values, stages)}
    for i, stage in enumerate(stages):
        point = {f"curve/{name}": value for name, value in stage.items() if _is_number(value)}
        for name, values in recorded.items():
            # a recorder keeps either a number a stage or several named ones, beside the stage's own keys
            found = values[i] if isinstance(values[i], dict) else {name: values[i]}
            point |= {f"recorded/{k}": v for k, v in found.items() if _is_number(v) and k not in stage}
        yield point


def _fits(values: Any, stages: list[Any]) -> bool:
    return isinstance(values, list) and len(values) == len(stages)


def _images(job: Path, result: Mapping[str, Any], at_most: int) -> list[Any]:
    import wandb

    images = []
    for image in (result.get("images") or [])[:at_most]:
        file = job / image["file"]
        if file.is_file():
            images.append(
                wandb.Image(str(file), caption=f"{image.get('prompt') or ''} (seed {image.get('seed')})")
            )
    return images


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

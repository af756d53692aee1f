"""Saves a workspace and a report to a W&B server, over those of the same name that were saved before."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.files import write_atomic
from research.tracking import dashboard, sync
from research.tracking.dashboard import DashboardData, dashboard_data
from research.tracking.wandb_server import reach, server

_SAVED = Path("wandb") / "dashboards.json"  # in the folder: what was saved where


def build(folder: Path, asked: Mapping[str, Any]) -> tuple[DashboardData, dict[str, Any], dict[str, str]]:
    """The boards over a folder's jobs.

    Args:
        folder: of a sweep, or one that holds sweeps.
        asked: ``project``, ``entity``, ``title`` (None where the jobs say it) and ``command``.

    Returns:
        What there is to show, the boards by kind, and ``project`` and ``entity`` ("" for the key's own).

    Raises:
        UserError: no jobs, none done, or wandb-workspaces is not installed.
    """
    made = sync.plan(folder, sync.Options(project=asked.get("project"), entity=asked.get("entity")))
    found = dashboard_data([entry.record for entry in made.entries])
    first = made.entries[0].settings
    target = {"project": str(first["project"]), "entity": str(first["entity"] or asked.get("default_entity") or "")}
    title = _plain(asked.get("title") or f"Sampling: {', '.join(found.groups)}")[:128]
    boards = {
        "workspace": dashboard.workspace(found, name=title, **target),
        "report": dashboard.report(found, title=title, command=str(asked["command"]), **target),
    }
    return found, boards, target


def save(folder: Path, asked: Mapping[str, Any], timeout: float) -> dict[str, str]:
    """Save both boards and return their addresses; for the process that talks to W&B.

    Raises:
        UserError: as `build`.
        Exception: whatever W&B raises.
    """
    reach(timeout)
    os.environ["WANDB_HTTP_TIMEOUT"] = str(max(1, round(timeout)))
    import wandb

    api = wandb.Api(timeout=max(1, round(timeout)))
    _, boards, target = build(folder, {**asked, "default_entity": api.default_entity})
    workspace, report = boards["workspace"], boards["report"]
    key = f"{server()} {target['entity']}/{target['project']} {workspace.name}"
    before = _saved_before(folder).get(key) or {}
    # the report first: it makes the project where there is none
    report.id = before.get("report_id") or ""
    _again(report, lambda: setattr(report, "id", ""), bool(report.id))
    workspace._internal_name, workspace._internal_id = (
        before.get("workspace_name") or "",
        before.get("workspace_id") or "",
    )
    _again(workspace, lambda: _forget(workspace), bool(workspace._internal_id))
    saved = {"report_id": report.id, "workspace_name": workspace._internal_name, "workspace_id": workspace._internal_id}
    write_atomic(folder / _SAVED, json.dumps({**_saved_before(folder), key: saved}, indent=1))
    return {"workspace": workspace.url, "report": report.url}


def _again(board: Any, forget: Any, known: bool) -> None:
    """Save; where the one saved before is gone from the server, as a new one."""
    try:
        board.save()
    except Exception:
        if not known:
            raise
        forget()
        board.save()


def _forget(workspace: Any) -> None:
    workspace._internal_name = workspace._internal_id = ""


def _saved_before(folder: Path) -> dict[str, Any]:
    try:
        before = json.loads((folder / _SAVED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return before if isinstance(before, dict) else {}


def _plain(text: str) -> str:
    """A name as W&B takes it: on one line, without emoji."""
    return " ".join("".join(c for c in text if ord(c) < 0x2600).split()) or "Sampling"

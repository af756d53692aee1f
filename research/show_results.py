"""What a person reads on the terminal when jobs have ended."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from research.jobs.job import Job
from research.jobs.machine_slots import only_process
from research.jobs.sweep import Outcome, folders
from research.lazy import gc_paused

if TYPE_CHECKING:
    from research.report import ReportPaths


def show_job(job: Job, outcome: Outcome) -> None:
    """The scores of a single job, and where its images are."""
    result, folder = outcome.results[0], job.folder
    if not result.done:
        print(f"error: job {job.id} failed: {result.error} (stack: {folder.path / 'traceback.txt'})", file=sys.stderr)
        return
    for warning in result.warnings:
        if warning not in job.warnings:  # those were said before the job started
            print(f"warning: {warning}", file=sys.stderr)
    scores = [f"{name} {value:.4g}" for name, value in result.metrics.items() if value is not None]
    seconds = result.timings
    cost = f"{result.nfe} NFE, {seconds['denoise']:.2f} s denoising, {seconds['total']:.1f} s in all"
    print("  ".join([*scores, cost]))
    print(f"{result.n_images} images: {folder.images}")


def show_sweep(jobs: Sequence[Job], outcome: Outcome) -> None:
    """The table of a sweep, its pictures, and the jobs that failed."""
    with gc_paused():
        reports = [_report(folder) for folder in folders(jobs)]
    for paths in reports:
        _show_report(paths)
    for result in outcome.failed:
        where = next((job.folder.path / "traceback.txt" for job in jobs if job.id == result.job_id), "")
        print(
            f"error: job {result.job_id} ({' '.join(result.overrides)}) failed: {result.error} (stack: {where})",
            file=sys.stderr,
        )
    if outcome.left_out:
        print(f"error: on_failure=stop left {outcome.left_out} jobs unrun", file=sys.stderr)


def _report(folder: Path) -> ReportPaths:
    """The report of a sweep, built unless it is there already; several processes that end a sweep build it once."""
    from research.report import build_report, print_table, read_sweep
    from research.report.build import current_report

    with only_process(f"report {folder.absolute()}"):
        if (paths := current_report(folder)) is None:
            return build_report(folder)
    print_table(read_sweep(folder))
    return paths


def show_search(folder: Path) -> None:
    """The jobs that a search has run, with its best point; nothing where none was kept."""
    if not any(folder.glob("*/result.json")):
        return
    with gc_paused():
        paths = _report(folder)
    try:
        best = yaml.safe_load((folder / "optimization_results.yaml").read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError):
        best = {}
    found = best.get("solutions") or [{"params": best.get("best_params"), "values": [best.get("best_value")]}]
    for solution in found:
        if solution.get("params"):
            point = " ".join(f"{key.lstrip('+')}={value}" for key, value in solution["params"].items())
            print(f"best: {', '.join(f'{value:.4g}' for value in solution['values'])} at {point}")
    _show_report(paths)


def _show_report(paths: Any) -> None:
    print(f"contact sheet: {paths.contact_sheet}")
    print(f"report:        {paths.report_html}")

"""A W&B workspace and a report over the runs of sweeps, made from what the jobs on disk vary and measure.

Needs wandb-workspaces. Nothing here speaks to a server; see `research.tracking.dashboard_save`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research.errors import UserError
from research.labels import is_number
from research.tracking.mirrored_run import MirroredRun

LEGEND_AT_MOST, ROWS_AT_MOST = 3, 10
_COLOURS = {0: "#3b5bdb", 50: "#2f9e8f", 100: "#e8890c"}  # told apart by colour-blind people

AXES_AT_MOST = 8
GUIDANCE, CLIP, FID, NFE, SECONDS, LOG_SNR = (
    "guidance/scale", "clip_score", "fid", "nfe", "seconds/image", "curve/log_snr"
)  # fmt: skip
# settings that name a run or its machine, or follow from others; none of them is an axis
_NO_AXIS = (
    "scheduler/class_name",
    "job_id",
    "created",
    "git_commit",
    "n_prompts",
    "weights_sha256",
    "device",
    "dtype",
    "batch_size",
)
_NO_AXES = ("versions/", "metrics_info/", "metrics/", "runtime/")
# the first axes shown; the others follow by name
_FIRST = (
    "sweep_name",
    "model/path",
    "task",
    "scheduler",
    "sigmas/name",
    "sampler/name",
    "guidance",
    GUIDANCE,
    "steps",
    "task/strength",
)
_LOWER_IS_BETTER = ("fid", "kid", "cmmd", "fd", "lpips", "error", "seconds", "nfe")


@dataclass(frozen=True)
class DashboardData:
    """What a dashboard has to show."""

    groups: list[str]  # the sweeps
    axes: list[str]  # keys of the config that are not the same in all jobs
    metrics: list[str]  # keys of the summary
    curves: list[str]  # keys of the history
    images: bool
    table: bool
    jobs: int
    failed: int
    best: list[tuple[str, str, float]]  # metric, run, value


def dashboard_data(records: Sequence[MirroredRun]) -> DashboardData:
    """What jobs vary and measure.

    Raises:
        UserError: there are none, or none is done.
    """
    done = [record for record in records if record.done]
    if not done:
        raise UserError(f"dashboard: found {len(records)} jobs and none that is done; accepted is at least one.")
    metrics = [key for key in _keys(r.summary for r in done) if _is_metric(key, done)]
    return DashboardData(
        groups=sorted({record.group for record in records}),
        axes=_axes(done),
        metrics=metrics,
        curves=[key for key in _keys(point for r in done for point in r.curve[:1]) if _is_curve(key)],
        images=any(record.images for record in done),
        table=any(record.samples for record in done),
        jobs=len(records),
        failed=len(records) - len(done),
        best=[best for key in metrics if (best := _best(key, done))],
    )


def _axes(records: Sequence[MirroredRun]) -> list[str]:
    """Keys with more than one value, those that people ask for first."""
    varied = []
    for key in _keys(record.config for record in records):
        if key in _NO_AXIS or key.startswith(_NO_AXES):
            continue
        values = {repr(record.config.get(key)) for record in records}
        if len(values) > 1 and all(not isinstance(record.config.get(key), (list, dict)) for record in records):
            varied.append(key)
    varied.sort(key=lambda key: (_FIRST.index(key) if key in _FIRST else len(_FIRST), key))
    return varied[:AXES_AT_MOST]


def _is_metric(key: str, records: Sequence[MirroredRun]) -> bool:
    if key.startswith(("nfe_by_branch/", "mirror/")) or key in ("n_images", "images_per_second", "peak_memory_bytes"):
        return False
    if key.startswith("seconds/") and key != SECONDS:
        return False
    # standard errors and the ends of intervals are no axes of their own
    return not key.endswith(("_se", "_lo", "_hi", "_low", "_high", "_std")) and any(
        is_number(r.summary.get(key)) for r in records
    )


def _is_curve(key: str) -> bool:
    return key not in (LOG_SNR, "curve/index", "curve/step")


def _best(key: str, records: Sequence[MirroredRun]) -> tuple[str, str, float] | None:
    scored = [(float(r.summary[key]), r.name) for r in records if is_number(r.summary.get(key))]
    if len(scored) < 2 or key in (NFE, SECONDS):
        return None
    value, name = min(scored) if lower_is_better(key) else max(scored)
    return key, name, value


def lower_is_better(key: str) -> bool:
    """Whether less is better."""
    return any(word in key.lower().replace("/", "_").split("_") for word in _LOWER_IS_BETTER)


def _keys(mappings: Any) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


# -- panels


def workspace(found: DashboardData, *, project: str, entity: str, name: str) -> Any:
    """A ``wandb_workspaces.workspaces.Workspace``, not saved."""
    ws = _package("wandb_workspaces.workspaces")
    sections = [
        ws.Section(
            name=title,
            panels=panels,
            is_open=True,
            pinned=place == 0,
            layout_settings=ws.SectionLayoutSettings(columns=min(3, len(panels)), rows=-(-len(panels) // 3)),
        )
        for place, (title, panels) in enumerate(_sections(found).items())
    ]
    columns = [f"summary:{key}" for key in found.metrics[:4]] + [f"config:{key}.value" for key in found.axes[:6]]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=LOG_SNR, group_by_prefix="first", max_runs=100),
        runset_settings=ws.RunsetSettings(filters=[ws.Metric("Group").isin(found.groups)], pinned_columns=columns),
    )


def report(found: DashboardData, *, project: str, entity: str, title: str, command: str) -> Any:
    """A ``wandb_workspaces.reports.v2.Report``, not saved.

    Args:
        found: what there is to show.
        project: W&B project.
        entity: user or team.
        title: of the page, 128 characters at most.
        command: that makes this report again.
    """
    wr = _package("wandb_workspaces.reports.v2")
    ws = _package("wandb_workspaces.workspaces")
    blocks: list[Any] = [wr.TableOfContents(), wr.MarkdownBlock(text=_introduction(found))]
    for heading, panels in _sections(found, width=8).items():
        runset = wr.Runset(name=", ".join(found.groups)[:64], filters=[ws.Metric("Group").isin(found.groups)])
        blocks += [wr.H2(heading), wr.P(_NOTES[heading]), wr.PanelGrid(runsets=[runset], panels=panels)]
    blocks += [wr.H2("How this was made"), wr.MarkdownBlock(text=f"    {command}")]
    return wr.Report(
        project=project, entity=entity, title=title[:128], description=_summary(found), blocks=blocks, width="fluid"
    )


def as_json(board: Any) -> dict[str, Any]:
    """A workspace or report as the server would be given it."""
    dumped: dict[str, Any] = board._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return dumped


_NOTES = {
    "Guidance: FID against CLIP score": "Each point is a job, coloured by guidance scale. Towards the lower right is better: "
    "a lower FID at a higher CLIP score. Small differences of FID at a few hundred images say nothing.",
    "Quality against cost": "What a better picture costs: seconds for an image, and model evaluations (NFE), which do not depend "
    "on the machine.",
    "Axes of the sweep": "Each line is a job; drag over an axis to keep a part of it.",
    "Along the trajectory": "One point a model evaluation, over log-SNR: there, schedules and step counts compare.",
    "Images": "The first images of each job, with prompt and seed; jobs side by side share them.",
}


def _sections(found: DashboardData, width: int = 8) -> dict[str, list[Any]]:
    wr = _package("wandb_workspaces.reports.v2")
    legend = " ".join(f"${{config:{axis}}}" for axis in found.axes[:LEGEND_AT_MOST]) or "${run:displayName}"
    place = _Grid(wr, width)

    def scatter(x: Any, y: str, title: str, **more: Any) -> Any:
        return wr.ScatterPlot(
            title=title, x=x, y=wr.SummaryMetric(y), legend_template=legend, layout=place.next(), **more
        )

    sections: dict[str, list[Any]] = {}
    guided, panels = GUIDANCE in found.axes, []
    if {FID, CLIP} <= set(found.metrics):
        colour = {"z": wr.Config(GUIDANCE), "gradient": _gradient(wr)} if guided else {}
        panels.append(scatter(wr.SummaryMetric(CLIP), FID, "FID against CLIP score, by guidance scale", **colour))
    if guided:
        quality = [key for key in found.metrics if key not in (NFE, SECONDS)][:5]
        panels += [scatter(wr.Config(GUIDANCE), key, f"{_words(key)} against guidance scale") for key in quality]
    if panels:
        sections["Guidance: FID against CLIP score"] = panels
    place.restart()
    measured = [key for key in found.metrics if key not in (NFE, SECONDS) and not key.startswith("seconds")][:3]
    costs = [(key, log) for key, log in ((SECONDS, True), (NFE, True)) if key in found.metrics]
    if panels := [
        scatter(wr.SummaryMetric(cost), key, f"{_words(key)} against {_words(cost)}", log_x=log)
        for key in measured
        for cost, log in costs
    ]:
        sections["Quality against cost"] = panels
    place.restart()
    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(axis), display_name=_words(axis)) for axis in found.axes
    ]
    columns += [
        wr.ParallelCoordinatesPlotColumn(
            metric=wr.SummaryMetric(key), display_name=_words(key), inverted=lower_is_better(key)
        )
        for key in [*measured, *(cost for cost, _ in costs)]
    ]
    panels = [
        wr.ParallelCoordinatesPlot(
            title="Axes and metrics", columns=columns, gradient=_gradient(wr), layout=place.next(3 * width)
        )
    ]
    if measured and found.axes:
        panels.append(wr.ParameterImportancePlot(with_respect_to=measured[0], layout=place.next(3 * width)))
    sections["Axes of the sweep"] = panels
    place.restart()
    if panels := [
        wr.LinePlot(
            title=f"{_words(key)} over log-SNR", x=LOG_SNR, y=[key], legend_template=legend, max_runs_to_show=50,
            layout=place.next(),
        )
        for key in found.curves[:6]
    ]:  # fmt: skip
        sections["Along the trajectory"] = panels
    place.restart()
    panels = []
    if found.images:
        panels.append(
            wr.MediaBrowser(
                title="Images by job", media_keys=["images"], mode="grid", grid_x_axis="index", grid_y_axis="run",
                layout=place.next(3 * width, 12),
            )
        )  # fmt: skip
    if found.table:
        panels.append(wr.WeavePanelSummaryTable(table_name="samples", layout=place.next(3 * width, 10)))
    if panels:
        sections["Images"] = panels
    return sections


class _Grid:
    """Places panels in rows, 24 columns wide."""

    def __init__(self, wr: Any, width: int):
        self.wr, self.width = wr, width
        self.restart()

    def restart(self) -> None:
        self.x = self.y = self.height = 0

    def next(self, width: int | None = None, height: int = 8) -> Any:
        width = width or self.width
        if self.x + width > 24:
            self.x, self.y = 0, self.y + self.height
            self.height = 0
        layout = self.wr.Layout(x=self.x, y=self.y, w=width, h=height)
        self.x, self.height = self.x + width, max(self.height, height)
        return layout


def _introduction(found: DashboardData) -> str:
    lines = [_summary(found), "", "Varied: " + (", ".join(f"`{axis}`" for axis in found.axes) or "nothing") + "."]
    if found.best:
        lines += ["", "| metric | best value | job |", "|---|---|---|"]
        lines += [f"| {_words(key)} | {value:.4g} | {_cell(name)} |" for key, name, value in found.best[:ROWS_AT_MOST]]
        lines += [
            "",
            "The best of many noisy values looks better than it is: compare jobs over the same seeds before choosing.",
        ]
    return "\n".join(lines)


def _summary(found: DashboardData) -> str:
    failed = f", {found.failed} of them failed" if found.failed else ""
    return f"{found.jobs} job{'s' * (found.jobs != 1)} of {', '.join(found.groups)}{failed}."


def _words(key: str) -> str:
    named = {CLIP: "CLIP score", FID: "FID", NFE: "NFE", SECONDS: "seconds an image", GUIDANCE: "guidance scale"}
    return named.get(key) or key.removeprefix("curve/").removeprefix("recorded/").replace("/", " ").replace("_", " ")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _gradient(wr: Any) -> list[Any]:
    return [wr.GradientPoint(color=colour, offset=offset) for offset, colour in _COLOURS.items()]


def _package(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "wandb_workspaces":
            raise
        raise UserError(
            "dashboard: wandb-workspaces is not installed; accepted is pip install 'diffusion-sampling-research[dashboards]'."
        ) from None


def spec(found: DashboardData, boards: Mapping[str, Any]) -> dict[str, Any]:
    """The boards as one JSON document."""
    return {"format": 1, "sweeps": found.groups, **{name: as_json(board) for name, board in boards.items()}}

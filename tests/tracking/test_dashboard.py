"""``research-dashboard``: a workspace and a report over what the jobs vary, on a server or in a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support.sweep_samples import PROMPTS, write_job
from wandb_stub import KEY, Stub

from research.errors import UserError
from research.tracking.dashboard import dashboard_data, lower_is_better
from research.tracking.dashboard_cli import run
from research.tracking.mirrored_run import mirrored_run

needs_package = pytest.mark.skipif(
    not any((Path(folder) / "wandb_workspaces").is_dir() for folder in sys.path),
    reason="wandb-workspaces is not installed",
)


@pytest.fixture
def sweep(tmp_path) -> Path:
    for scheduler in ("ddim", "heun"):
        for scale in (1.0, 3.0):
            write_job(tmp_path / "my sweep", scheduler=scheduler, scale=scale, steps=3, prompts=PROMPTS[:1])
    write_job(tmp_path / "my sweep", scale=9.0, steps=3, error="NaN")
    return tmp_path / "my sweep"


def panels(section: dict) -> list[dict]:
    return section["panels"]


def test_what_there_is_to_show(sweep):
    found = dashboard_data([mirrored_run(file.parent) for file in sweep.glob("*/result.json")])
    assert found.groups == ["my sweep"]
    assert found.axes == ["scheduler", "guidance/scale"]
    assert found.metrics == ["clip_score", "fid", "nfe", "seconds/image"]
    assert {"curve/sigma", "recorded/x0_norm", "recorded/x0_std"} <= set(found.curves)
    assert (found.jobs, found.failed, found.images, found.table) == (5, 1, True, True)
    scores = [json.loads(file.read_text())["metrics"].get("fid", 99.0) for file in sweep.glob("*/result.json")]
    assert next(value for key, _, value in found.best if key == "fid") == min(scores)


@pytest.mark.parametrize(
    ("key", "lower"),
    [
        ("fid", True),
        ("kid", True),
        ("clip_score", False),
        ("seconds/image", True),
        ("nfe", True),
        ("candid_score", False),
    ],
)
def test_which_way_is_better(key, lower):
    assert lower_is_better(key) is lower


def test_no_job_that_is_done_is_one_clear_line(tmp_path):
    job = write_job(tmp_path / "s", error="NaN")
    with pytest.raises(UserError, match="found 1 jobs and none that is done"):
        dashboard_data([mirrored_run(job)])


@pytest.mark.slow
@needs_package
def test_without_a_key_it_is_a_file_with_everything_in_it(sweep, capsys):
    assert run([str(sweep)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"workspace and report of 5 jobs: {sweep / 'dashboard.json'} (no key for")
    text = (sweep / "dashboard.json").read_text()
    spec = json.loads(text)
    sections = {s["name"]: s for s in spec["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]}
    first, *others = panels(sections["Guidance: FID against CLIP score"])
    assert first["viewType"] == "Scatter Plot"
    assert [first["config"][f"{axis}Axis"] for axis in "xyz"] == [
        "summary:clip_score", "summary:fid", "config:guidance/scale.value",
    ]  # fmt: skip
    assert {panel["config"]["xAxis"] for panel in others} == {"config:guidance/scale.value"}
    cost = [(p["config"]["xAxis"], p["config"]["yAxis"]) for p in panels(sections["Quality against cost"])]
    assert ("summary:seconds/image", "summary:fid") in cost
    assert ("summary:nfe", "summary:clip_score") in cost
    columns = [c["accessor"] for c in panels(sections["Axes of the sweep"])[0]["config"]["columns"]]
    assert columns[:2] == ["config:scheduler.value", "config:guidance/scale.value"]
    assert "summary:fid" in columns
    assert {p["config"]["xAxis"] for p in panels(sections["Along the trajectory"])} == {"curve/log_snr"}
    assert panels(sections["Images"])[0]["config"]["mediaKeys"] == ["images"]
    # the same panels in the report, for the runs of the sweep alone
    report = json.dumps(spec["report"])
    assert "Scatter Plot" in report
    assert "Parallel Coordinates Plot" in report
    assert "research-dashboard 'my sweep'" in report
    assert '"my sweep"' in json.dumps(spec["workspace"]["spec"])
    assert str(sweep.parent) not in text


@needs_package
@pytest.mark.slow
def test_with_a_key_both_are_saved_and_saved_again_over_themselves(sweep, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with Stub() as stub:
        monkeypatch.setenv("WANDB_BASE_URL", stub.base_url)
        assert run([str(sweep)]) == 0
        first = capsys.readouterr().out
        assert first.startswith(f"workspace: {stub.base_url}/me/research?nw=")
        assert f"report:    {stub.base_url}/me/research/reports/" in first
        assert sorted(view["type"] for view in stub.views.values()) == ["project-view", "runs"]
        assert run([str(sweep)]) == 0
        assert capsys.readouterr().out == first
        assert len(stub.views) == 2
        # gone from the server: made anew
        stub.views.clear()
        assert run([str(sweep)]) == 0
        assert len(stub.views) == 2
        assert not (sweep / "dashboard.json").exists()
        stub.trouble = lambda what: "500" if what == "view" else None
        assert run([str(sweep), "--time-limit", "8", "--request-timeout", "2"]) == 1
        assert "did not take them" in capsys.readouterr().err
    assert (sweep / "dashboard.json").is_file()


@pytest.mark.slow
@needs_package
def test_a_file_is_written_where_it_is_asked_for_or_not_at_all(sweep, capsys, tmp_path):
    assert run([str(sweep), "-o", str(tmp_path / "d" / "board.json")]) == 0
    assert json.loads((tmp_path / "d" / "board.json").read_text())["sweeps"] == ["my sweep"]
    (tmp_path / "file").write_text("")
    assert run([str(sweep), "-o", str(tmp_path / "file" / "x.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert run([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert run([str(tmp_path)]) == 2
    assert "has no finished jobs" in capsys.readouterr().err


def test_without_the_package_it_says_how_to_get_it(sweep, capsys, monkeypatch):
    for name in ("wandb_workspaces", "wandb_workspaces.workspaces", "wandb_workspaces.reports.v2"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run([str(sweep)]) == 2
    assert "pip install 'diffusion-sampling-research[dashboards]'" in capsys.readouterr().err
    assert not (sweep / "dashboard.json").exists()

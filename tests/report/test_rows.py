from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console
from support.sweep_samples import PROMPTS, write_job, write_sweep

from research.errors import UserError
from research.labels import number
from research.report import print_row, print_table, read_row, read_sweep
from research.report.contact_sheet import lay_out
from research.report.table import write_csv

AWKWARD = ['a "quoted", comma', "k=v; x", "<script>alert(1)</script>", "été ☕ 猫 [bold]x[/bold]", "$x$ & $y$"]


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    directory = write_sweep(tmp_path_factory.mktemp("sweeps") / "grid", prompts=PROMPTS[:2])
    write_job(
        directory, scheduler="heun", steps=10, prompts=PROMPTS[:2], error="latents became NaN\nat stage 7", number=50
    )
    return directory


def printed(function, *args, **kwargs) -> str:
    stream = io.StringIO()
    function(*args, console=Console(file=stream, **kwargs))
    return stream.getvalue()


def test_axes_are_what_differs_and_not_what_follows(grid):
    axes = {axis.key: axis.values for axis in read_sweep(grid).axes}
    assert axes == {
        "scheduler.name": ("ddim", "dpmpp_2m", "heun"),  # its class_name follows from it
        "guidance.scale": (1.0, 3.0, 7.0),
        "steps": (5, 10, 25),
    }


def test_no_guidance_beside_guidance_is_two_axes(tmp_path):
    for number_, scale in enumerate((3.0, None, 1.0)):
        write_job(tmp_path, scale=scale, number=number_, prompts=PROMPTS[:1])
    axes = {axis.key: axis.values for axis in read_sweep(tmp_path).axes}
    assert axes == {"guidance._target_": ("CFG", "NoGuidance"), "guidance.scale": (None, 1.0, 3.0)}


def test_rows_come_in_the_order_of_the_axes(grid):
    rows = read_sweep(grid).rows
    settings = [(r.settings["scheduler.name"], r.settings["guidance.scale"], r.settings["steps"]) for r in rows]
    assert settings == sorted(settings)
    assert lay_out(read_sweep(grid)).columns == [(5,), (10,), (25,)]


def test_damaged_and_unfinished_jobs_are_told_apart(tmp_path):
    write_job(tmp_path, prompts=PROMPTS[:1])
    for name, content in (("cut", '{"status": "do'), ("other", "[]"), ("empty", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(content)
    (tmp_path / "running").mkdir()
    sweep = read_sweep(tmp_path)
    assert len(sweep.rows) == 1
    assert [line.split("/")[0] for line in sweep.damaged] == ["cut", "empty", "other"]
    assert "damaged cut/result.json" in printed(print_table, sweep)


def test_a_folder_without_jobs_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_sweep(tmp_path / "none")
    with pytest.raises(UserError, match="no finished job"):
        read_sweep(tmp_path)
    write_job(tmp_path / "inner", prompts=PROMPTS[:1])
    with pytest.raises(UserError, match="name one of them: inner"):
        read_sweep(tmp_path)


def test_table_in_a_pipe_is_whole_and_says_what_failed(grid):
    text = printed(print_table, read_sweep(grid))
    lines = text.splitlines()
    assert "…" not in text
    assert max(map(len, lines)) <= 200
    header = next(line for line in lines if "scheduler" in line)
    assert [word for word in ("guidance scale", "steps", "CLIP score ↑", "FID ↓", "NFE") if word not in header] == []
    assert "latents became NaN" in text
    assert "\x1b[" not in text


def test_table_keeps_to_a_narrow_terminal(grid):
    text = printed(print_table, read_sweep(grid), force_terminal=True, width=80, color_system=None)
    assert max(len(line) for line in text.splitlines() if not line.startswith("failed")) <= 80
    assert "dpmpp_2m" in text


def test_one_jobs_line(grid):
    sweep = read_sweep(grid)
    assert "2 images  ·  CLIP score" in printed(print_row, sweep.rows[0])
    assert "failed: latents became NaN" in printed(print_row, sweep.failed[0])


def test_csv_reads_back_with_awkward_prompts(tmp_path):
    for k, prompt in enumerate(AWKWARD):
        write_job(tmp_path, prompts=[prompt], number=k, scheduler="ddim")
    sweep = read_sweep(tmp_path)
    write_csv(sweep, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [row["prompts"] for row in found] == AWKWARD
    assert found[0]["status"] == "done"
    assert float(found[0]["fid"]) == pytest.approx(sweep.rows[0].metrics["fid"], rel=1e-6)
    assert "[bold]" in printed(print_table, sweep)


def test_csv_has_varied_settings_first_then_scores_and_costs(grid, tmp_path):
    write_csv(read_sweep(grid), tmp_path / "results.csv")
    header = (tmp_path / "results.csv").read_text().splitlines()[0].split(",")
    assert header[:5] == ["job_id", "status", "scheduler.name", "guidance.scale", "steps"]
    assert {"clip_score", "fid", "seconds_denoise", "nfe", "device", "error", "overrides"} <= set(header)


def test_a_record_without_most_keys_is_still_a_row(tmp_path):
    folder = tmp_path / "sweep" / "job"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(
        json.dumps({"job_id": "job", "status": "failed", "error": None, "metrics": {"fid": None}})
    )
    row = read_row(folder)
    assert (row.job_id, row.error, row.metrics, row.images) == ("job", "", {}, [])
    assert "no error was recorded" in printed(print_table, read_sweep(tmp_path / "sweep"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (12, "12"), (0.0262, "0.0262"), (70.234, "70.2"), (1234.5, "1234"), (-0.00001, "-1e-05")],
)
def test_numbers_have_three_significant_digits(value, text):
    assert number(value) == text

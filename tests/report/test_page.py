from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from support.sweep_samples import PROMPTS, write_job, write_sweep
from test_rows import AWKWARD

from research.jobs.record import JobResult
from research.report import build_report, read_sweep
from research.report.cli import main
from research.report.contact_sheet import draw_contact_sheet
from research.report.draw import Plot
from research.report.page import render
from research.report.thumbs import choose_images, load_thumb
from research.results.axes import Axis
from research.results.read import Sweep

HOSTILE = [
    "</script><script>alert(1)</script>",
    "'\" onload='alert(1)' x=\"",
    "<!-- <script",
    "<!--live-->",
    "{{ 7 * 7 }}{% raw %}",
    "a\ud800b\udfff",
    "\u2028\u2029\x00\x0b\x1b[31m",
    "]]>&lt;b&gt;&",
    "javascript:alert(1)",
]


def build(directory: Path):
    return build_report(directory, console=Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    directory = write_sweep(tmp_path_factory.mktemp("sweeps") / "grid", steps=(5, 25), prompts=PROMPTS)
    write_job(directory, scheduler="heun", steps=5, error="latents became NaN", number=50)
    return directory


@pytest.fixture
def small(tmp_path):
    write_job(tmp_path / "small", steps=2, prompts=PROMPTS[:1])
    return tmp_path / "small"


class _Page(HTMLParser):
    """Tags and the text of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data


def scripts(page: _Page) -> list[dict]:
    """Scripts that run; the data block does not."""
    return [a for t, a in page.tags if t == "script" and a.get("type") != "application/json"]


@pytest.mark.slow
@pytest.mark.figures
def test_everything_is_written(grid):
    paths = build(grid)
    assert paths.results_csv.is_file()
    assert paths.contact_sheet is not None
    names = {p.stem for p in paths.plots}
    assert names == {
        "clip_score_vs_fid",
        *(f"{m}_vs_{x}" for m in ("fid", "clip_score") for x in ("nfe", "seconds", "steps", "guidance", "scheduler")),
    }
    page = _Page(paths.report_html.read_text())
    assert len(scripts(page)) == 1
    # self-contained: all that is shown is inside, and what is linked lies beside
    sources = [a["src"] for _, a in page.tags if "src" in a]
    assert sources
    assert all(s.startswith("data:") for s in sources)
    links = [a["href"] for _, a in page.tags if "href" in a]
    beside = {s for s in links if not s.startswith(("#", "data:"))}
    assert beside == {s for s in beside if (grid / s).is_file()}
    for text in (
        "latents became NaN",
        "ValueError",
        "emoji-eval",
        "2.13.0",
        "highest CLIP score",
        "guidance scale",
        "Which setting to use, and why",
        "research scheduler=ddim",
    ):
        assert text in page.words
    rows = [a["data-job"] for t, a in page.tags if t == "tr" and "data-job" in a]
    assert rows == [row.job_id for row in read_sweep(grid).rows]
    assert paths.report_html.stat().st_size < 5_000_000


@pytest.mark.slow
@pytest.mark.figures
def test_building_again_gives_the_same_files(tmp_path):
    write_sweep(tmp_path, ("ddim",), (3.0,), (5, 10), prompts=PROMPTS[:1])
    files = ("report.html", "contact_sheet.png", "results.csv")
    build(tmp_path)
    first = [(tmp_path / name).read_bytes() for name in files]
    build(tmp_path)
    assert first == [(tmp_path / name).read_bytes() for name in files]
    assert not list(tmp_path.glob(".*"))  # no scratch files


def test_the_sheet_shows_the_same_prompts_and_seeds_in_every_cell(grid):
    sweep = read_sweep(grid)
    chosen = choose_images(sweep.done)
    assert [prompt for prompt, _ in chosen.images] == PROMPTS
    for row in sweep.done:
        assert [(i.prompt, i.seed) for i in chosen.of(row)] == chosen.images
    sheet = np.asarray(draw_contact_sheet(sweep))
    # small images are upscaled by whole factors: every model pixel is there as a hard block
    thumb = np.asarray(load_thumb(sweep.done[0], chosen.of(sweep.done[0])[0], 64))
    assert np.array_equal(thumb[::2, ::2], thumb[1::2, 1::2])
    windows = np.lib.stride_tricks.sliding_window_view(sheet[:, :, 0], (8, 8))
    assert (windows == thumb[:8, :8, 0]).all(axis=(2, 3)).any()


@pytest.mark.slow
@pytest.mark.figures
def test_awkward_prompts_change_nothing(tmp_path):
    write_sweep(tmp_path / "a<b>&", ("ddim",), (1.0, 3.0), (5,), prompts=AWKWARD)
    paths = build(tmp_path / "a<b>&")
    page = _Page(paths.report_html.read_text(encoding="utf-8"))
    assert len(scripts(page)) == 1
    assert not [t for t, _ in page.tags if t in ("b", "bold", "i")]
    assert "<script>alert(1)</script>" in page.words
    assert "a<b>&" in page.words


@pytest.mark.slow
@pytest.mark.figures
def test_prompts_as_an_axis(tmp_path):
    for k, prompt in enumerate(AWKWARD):
        write_job(tmp_path, prompts=[prompt], number=k)
    paths = build(tmp_path)
    assert paths.contact_sheet is not None


@pytest.mark.parametrize("axes", [{}, {"steps": (5, 10)}, {"scales": (1.0, 3.0)}, {"schedulers": ("ddim", "euler")}])
def test_a_sheet_over_few_axes(tmp_path, axes):
    one = {"schedulers": ("ddim",), "scales": (3.0,), "steps": (10,)}
    write_sweep(tmp_path, **{**one, **axes}, prompts=PROMPTS[:2])
    sheet = draw_contact_sheet(read_sweep(tmp_path))
    assert sheet is not None
    assert sheet.width >= 200


def test_only_failures_and_no_images(tmp_path):
    write_job(tmp_path / "failed", error="x")
    paths = build(tmp_path / "failed")
    assert paths.contact_sheet is None
    assert paths.plots == []
    write_job(tmp_path / "bare", images=False)
    assert build(tmp_path / "bare").contact_sheet is None
    gone = write_job(tmp_path / "gone", prompts=PROMPTS[:2])
    shutil.rmtree(gone / "images")
    assert build(tmp_path / "gone").report_html.is_file()


@pytest.mark.slow
@pytest.mark.figures
def test_a_hundred_jobs_fit_a_page_that_can_be_mailed(tmp_path):
    schedulers = [f"solver_{i:02d}" for i in range(10)]
    write_sweep(tmp_path, schedulers, (1.0, 3.0, 5.0, 7.0, 9.0), (5, 10))
    paths = build(tmp_path)
    assert paths.report_html.stat().st_size < 5_000_000
    page = _Page(paths.report_html.read_text())
    assert len([a for t, a in page.tags if t == "a" and a.get("class") == "tile"]) == 100 * len(PROMPTS)
    with Image.open(paths.contact_sheet) as sheet:
        assert sheet.width * sheet.height < 80_000_000
    assert len(paths.results_csv.read_text().splitlines()) == 101


@pytest.mark.slow
@pytest.mark.figures
def test_large_pictures_go_in_as_thumbnails(tmp_path):
    """Whatever the pictures are, every job keeps one, and the page its size."""
    write_sweep(tmp_path, ("a", "b"), (3.0,), (5, 10), prompts=PROMPTS[:2])
    for file in tmp_path.glob("*/images/*.png"):
        noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file)  # nothing compresses worse
    paths = build(tmp_path)
    assert paths.report_html.stat().st_size < 3_500_000
    page = _Page(paths.report_html.read_text())
    jobs = {a["data-job"] for t, a in page.tags if t == "a" and a.get("class") == "tile"}
    assert len(jobs) == 4


def test_command(small, tmp_path, capsys):
    assert main([str(small)]) == 0
    assert "report.html" in capsys.readouterr().out
    for directory, pattern in ((tmp_path / "none", "no such folder"), (tmp_path, "name one of them: small")):
        assert main([str(directory)]) == 2
        error = capsys.readouterr().err
        assert re.fullmatch(rf"research-report: .*{pattern}.*\n", error)


@pytest.mark.slow
def test_the_report_needs_no_torch(small):
    code = f"import sys; from research.report.cli import main; main([{str(small)!r}]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(st.characters(codec=None)), st.sampled_from(HOSTILE)))
def test_no_text_of_a_record_leaves_its_place(small, text):
    """Whatever stands in prompts, errors, settings, names and versions, the page has the tags that it has with a plain word."""
    plain, hostile = (_Page(_with_text(small, word)) for word in ("word", f"w{text}"))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(a) for _, a in hostile.tags] == [sorted(a) for _, a in plain.tags]
    assert scripts(hostile) == scripts(plain)


def _with_text(directory: Path, text: str) -> str:
    """The page of one job that was done and one that failed, with `text` wherever a record has text."""
    (done,) = read_sweep(directory).rows
    kept = msgspec.to_builtins(done.result)
    image = {**kept["images"][0], "prompt": text}
    versions, info = {text.replace(": ", ""): text}, {"clip_score": {"definition": text, "model": text}}
    record = {**kept, "images": [image], "versions": versions, "metrics_info": info, "overrides": [text]}
    record |= {"sweep_name": text, "device": text, "warnings": [text], "error": None}
    failed = {**record, "job_id": "b", "status": "failed", "error": f"x {text}"}
    rows = [
        replace(
            done,
            result=msgspec.convert(record, JobResult),
            derived={},
            settings={**done.settings, "prompts": (text,), "task.note": text},
        ),
        replace(done, result=msgspec.convert(failed, JobResult), derived={}, settings={}),
    ]
    axes = [Axis("task.note", (None, text))]
    sweep = Sweep(directory, rows, axes, [text])
    thumb = (f"data:image/webp;base64,{'A' * 8}", 32, 32)
    plot = Plot("fid_vs_nfe", text, directory / "fid.png", "<svg></svg>")
    page = render(sweep, plots=[plot], thumbs={(done.job_id, 0): thumb})
    page.encode()  # no half of a character is left
    return page


def test_a_folder_named_from_where_one_stands_is_shown_as_by_its_whole_path(tmp_path, monkeypatch):
    """As commands name it: images in the sheet and on the page, and what tasks show."""
    directory = write_sweep(tmp_path / "sweep", ("ddim",), (3.0,), (5, 10), prompts=PROMPTS[:2])
    for job in directory.glob("*/result.json"):
        record = json.loads(job.read_text())
        record.pop("seal", None)
        (job.parent / "pictures").mkdir()
        Image.new("RGB", (16, 16), "red").save(job.parent / "pictures" / "strip.png")
        job.write_text(json.dumps({**record, "pictures": {"strip": "pictures/strip.png"}}))
    shown = []
    monkeypatch.chdir(tmp_path)
    for place in (directory, Path("sweep")):
        paths = build(place)
        page = _Page(paths.report_html.read_text())
        pictures = [a["src"] for tag, a in page.tags if tag == "img" and a.get("src", "").startswith("data:image/png")]
        shown.append((paths.contact_sheet.read_bytes(), pictures))
    assert shown[0] == shown[1]
    assert len(shown[1][1]) >= 2  # a strip a job

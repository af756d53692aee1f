"""The page in a real browser: what a person clicks, types and sees."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import expect, sync_playwright
from rich.console import Console
from support.sweep_samples import PROMPTS, write_job, write_sweep

from research.report import build_report, read_sweep
from research.report.advice import fronts
from research.report.live import LOOPBACK, LiveReport, _serve
from research.report.script_data import image_command

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge"))), None
)
pytestmark = [
    pytest.mark.figures(3),  # those that are clicked
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on the PATH (apt-get install chromium; CHROMIUM=/path/to/it)"
    ),
]

AWKWARD = [
    'a "quoted", comma; \'single\' and \\ back\\"',
    "k=v, [list] {map: 1} $HOME ${steps} `id` %",
    "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>",
    "été ☕ 猫 👩‍🚀 \u2028 line",
    "‮مرحبا بالعالم‬ שלום",
    "&lt;b&gt; & <!-- <script",
]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two schedulers, scales and step counts; one more job failed."""
    directory = write_sweep(
        tmp_path_factory.mktemp("sweeps") / "a <b>grid</b> & 猫", scales=(1.0, 3.0), steps=(5, 25), prompts=PROMPTS[:3]
    )
    write_job(directory, scheduler="heun", steps=5, prompts=PROMPTS[:3], error="latents became <NaN>", number=50)
    build(directory)
    return directory


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    directory = write_sweep(
        tmp_path_factory.mktemp("sweeps") / "awkward", ("ddim", "heun"), (3.0,), (5, 10), prompts=AWKWARD
    )
    build(directory)
    return directory


@pytest.fixture
def visit(browser):
    """Opens a sweep's page; what the console says or a script throws fails the test."""
    opened, said = [], []

    def visit(directory, **options):
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        page.set_default_timeout(10_000)
        opened.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(directory if isinstance(directory, str) else (directory / "report.html").as_uri())
        return page

    yield visit
    for page in opened:
        page.close()
    assert said == []


def build(directory: Path) -> None:
    build_report(directory, console=Console(file=io.StringIO()))


def rows(page):
    return page.locator("#jobs-table tbody tr:visible")


def column(page, name):
    head = page.locator("#jobs-table thead th").all_inner_texts()
    place = next(i for i, text in enumerate(head) if text.startswith(name))
    return [row.locator("td").nth(place).get_attribute("data-v") for row in rows(page).all()]


@pytest.mark.slow
def test_sorting_goes_by_the_exact_value_both_ways(visit, sweep):
    page = visit(sweep)
    button = page.locator("#jobs-table thead").get_by_role("button", name="FID")
    button.click()
    found = column(page, "FID")
    assert found[-1] == ""  # the failed job stays last
    assert found[:-1] == sorted(found[:-1], key=float)
    button.press("Enter")
    assert column(page, "FID")[:-1] == found[:-1][::-1]
    expect(page.locator("#jobs-table th[aria-sort=descending]")).to_have_count(1)
    page.reload()  # the view is kept in the address
    assert column(page, "FID")[:-1] == found[:-1][::-1]


FILTERS = {
    "steps=25": 4,
    "steps<=5 ddim": 2,
    "scheduler:heun": 1,
    "latents": 0,
    "nfe<=10 guidance>1": 2,
    "fid<0": 0,
    "failed": 1,
    '"dpmpp_2m"': 4,
    "<b>": 0,
    "=": 0,
    "fid<": 0,
}


@pytest.mark.slow
def test_the_filter_holds_words_settings_and_bounds(visit, sweep):
    page = visit(sweep)
    done = {r.job_id for r in read_sweep(sweep).done}
    for typed, left in FILTERS.items():
        page.keyboard.press("/")
        page.keyboard.type(typed)
        expect(page.locator("#count")).to_have_text(f"{left} of 9 jobs")
        expect(rows(page)).to_have_count(left)
        kept = {row.get_attribute("data-job") for row in rows(page).all()}
        lit = page.locator("#fig-fid_vs_nfe .pt:not(.off)").evaluate_all("all => all.map((e) => e.dataset.job)")
        assert set(lit) == kept & done
        page.keyboard.press("Escape")
        expect(rows(page)).to_have_count(9)
        page.locator("#filter").blur()


@pytest.mark.slow
def test_filters_by_axis_and_front(visit, sweep):
    page = visit(sweep)
    page.get_by_label("Only scheduler").select_option("ddim")
    expect(rows(page)).to_have_count(4)
    page.get_by_role("button", name="Clear").click()
    expect(rows(page)).to_have_count(9)
    page.get_by_label("on the front only").check()
    assert {r.get_attribute("data-job") for r in rows(page).all()} == fronts(read_sweep(sweep))


def test_a_click_shows_a_picture_large_with_settings_and_command(visit, sweep):
    page = visit(sweep)
    row = read_sweep(sweep).done[2]
    page.locator(f'a.tile[data-job="{row.job_id}"]').nth(1).click()
    view = page.locator("#view")
    expect(view).to_be_visible()
    image = row.images[1]
    expect(view.locator("#cmd")).to_have_text(image_command(row, image.file))
    expect(view.locator("#view-settings")).to_contain_text(image.prompt)
    # the file itself, not the thumbnail
    page.wait_for_timeout(100)
    assert view.locator("img").evaluate("i => [i.naturalWidth, new URL(i.src).protocol]") == [32, "file:"]
    page.keyboard.press("ArrowRight")
    expect(view.locator("#view-place")).to_have_text("3 of 3")
    page.keyboard.press("ArrowDown")
    expect(view.locator("#view-title")).to_have_text("scheduler ddim, guidance scale 3, steps 25")
    page.keyboard.press("Escape")
    expect(view).to_be_hidden()


def test_a_point_and_a_row_open_their_job(visit, sweep):
    page = visit(sweep)
    job = page.locator("#fig-clip_score_vs_nfe .pt").first
    job.dispatch_event("click")
    expect(page.locator("#view-settings")).to_contain_text(job.get_attribute("data-job"))
    page.keyboard.press("Escape")
    page.locator("#jobs-table tr", has_text="failed").locator("a.open").press("Enter")
    expect(page.locator("#view-error")).to_contain_text("latents became <NaN>")
    expect(page.locator("#view-command")).to_be_hidden()


@pytest.mark.slow
def test_the_contact_sheet_takes_any_axes(visit, sweep):
    page = visit(sweep)
    sheet = page.locator("#sheet")
    assert sheet.locator("td.bad").count() == 1
    page.locator("#ax-x").select_option("prompt")
    page.locator("#ax-y").select_option("scheduler")
    page.locator("#ax-z").select_option("steps")
    expect(sheet.locator("table")).to_have_count(2)
    table = sheet.locator("table").first
    assert [t.strip() for t in table.locator("thead th").all_inner_texts()][1:] == [f"prompt {p}" for p in PROMPTS[:3]]
    assert table.locator("tbody th").all_inner_texts() == ["ddim", "dpmpp_2m"]
    # every cell shows what its heads say
    jobs = {r.job_id: r for r in read_sweep(sweep).done}
    for place, cell in enumerate(table.locator("tbody tr").nth(1).locator("td").all()):
        tile = cell.locator("a.tile")
        row = jobs[tile.get_attribute("data-job")]
        assert (row.settings["scheduler.name"], row.settings["steps"]) == ("dpmpp_2m", 5)
        assert row.images[int(tile.get_attribute("data-k"))].prompt == PROMPTS[place]
    fixed = page.get_by_label("guidance scale", exact=True).first
    fixed.select_option("3")
    tile = sheet.locator("a.tile").first
    assert jobs[tile.get_attribute("data-job")].settings["guidance.scale"] == 3
    tile.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.k") == "1"
    page.keyboard.press("Enter")
    expect(page.locator("#view")).to_be_visible()


@pytest.mark.slow
def test_two_jobs_side_by_side(visit, sweep):
    page = visit(sweep)
    done = read_sweep(sweep).done
    page.locator("#cmp-a").select_option(done[0].job_id)
    page.locator("#cmp-b").select_option(done[1].job_id)
    page.locator("#cut").focus()
    before = page.locator("#img-a").evaluate("i => getComputedStyle(i).clipPath")
    page.keyboard.press("Home")
    assert page.locator("#cut").input_value() == "0"
    assert page.locator("#img-a").evaluate("i => getComputedStyle(i).clipPath") != before
    page.locator("#stage").scroll_into_view_if_needed()
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 50)
    page.mouse.up()
    assert page.locator("#cut").input_value() == "75"
    table = page.locator("#cmp-table")
    expect(table).to_contain_text("right is better: left − right")  # 5 steps against 25, paired
    expect(table).to_contain_text("paired over 3")
    page.get_by_role("button", name="Swap").click()
    expect(table).to_contain_text("left is better")


@pytest.mark.slow
def test_light_dark_and_phone(visit, sweep):
    def paper(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page = visit(sweep, color_scheme="dark", viewport={"width": 390, "height": 800})
    dark = paper(page)
    page.get_by_role("button", name="Light or dark").click()
    assert paper(page) != dark
    assert page.evaluate("document.documentElement.scrollWidth") <= 391
    page.locator("a.tile").first.click()
    box = page.locator("#view").bounding_box()
    assert box["width"] <= 390
    page.keyboard.press("Escape")
    page.reload()
    assert paper(page) != dark  # what was chosen is kept


@pytest.mark.slow
def test_scripts_off(visit, sweep):
    page = visit(sweep, java_script_enabled=False)
    text = page.locator("body").inner_text()
    for part in ("Which setting to use, and why", "cannot tell which setting to use", "latents became <NaN>", "2.13.0"):
        assert part in text
    assert rows(page).count() == 9
    assert page.locator("#sheet img").first.is_visible()
    assert page.locator("#fig-clip_score_vs_fid svg").is_visible()
    assert not page.locator("#filter").is_visible()
    page.locator("a.tile").first.click()  # a link to the picture's own file
    assert page.url.endswith(".png")


@pytest.mark.slow
def test_awkward_prompts_change_nothing(visit, awkward):
    page = visit(awkward)
    assert page.evaluate("window.pwned") is None
    sweep = read_sweep(awkward)
    row = sweep.done[0]
    for k, prompt in enumerate(AWKWARD):
        page.locator(f'a.tile[data-job="{row.job_id}"][data-k="{k}"]').click()
        said = page.locator("#view-caption").text_content()
        assert said == f"{prompt}, seed {k}"
        assert page.locator("#cmd").text_content() == image_command(row, row.images[k].file)
        page.keyboard.press("Escape")
    page.locator("#ax-y").select_option("prompt")
    heads = page.locator("#sheet tbody th").all_inner_texts()
    assert len(heads) == len(AWKWARD)
    assert page.evaluate("window.pwned") is None
    assert page.locator("b, #sheet img:not([src^='data:'])").count() == 0


@pytest.mark.slow
def test_the_file_alone_is_enough(browser, sweep, tmp_path):
    shutil.copy(sweep / "report.html", tmp_path / "moved.html")
    page = browser.new_page()
    page.goto((tmp_path / "moved.html").as_uri())
    page.locator("a.tile").first.click()
    # the picture's file is not beside it: the thumbnail stands in
    page.wait_for_function("() => document.getElementById('view-img').src.startsWith('data:')", timeout=5000)
    page.close()


@pytest.mark.slow
def test_a_served_page_follows_the_sweep(visit, tmp_path):
    directory = write_sweep(tmp_path / "live", ("ddim",), (3.0,), (5, 10), prompts=PROMPTS[:1])
    (directory / "sweep.json").write_text(
        json.dumps({"format": 1, "jobs": [p.name for p in directory.iterdir()] + ["next"]})
    )
    report = LiveReport(directory)
    report.look()
    servers = _serve(report, 0)
    server = servers[0]
    try:
        page = visit(f"http://{LOOPBACK}:{server.server_port}/")
        expect(page.locator("#progress")).to_contain_text("2 of 3 jobs have a result")
        expect(rows(page)).to_have_count(2)
        page.locator("#filter").fill("done")
        page.locator("#filter").blur()
        (directory / "next" / "images").mkdir(parents=True)
        (directory / "next" / ".claim.0").touch()
        report.look()
        expect(page.locator("#progress")).to_contain_text("1 running")
        shutil.rmtree(directory / "next")
        write_job(directory, steps=25, prompts=PROMPTS[:1], number=9)
        report._not_before = 0.0
        report.look()
        expect(rows(page)).to_have_count(3)
        assert page.locator("#filter").input_value() == "done"
        page.close()
    finally:
        for each in servers:
            each.shutdown()
            each.server_close()


@pytest.mark.slow
def test_a_page_of_a_thousand_jobs_opens_fast(visit, tmp_path):
    schedulers = [f"solver_{i:02d}" for i in range(20)]
    write_sweep(tmp_path, schedulers, (1.0, 3.0, 5.0, 7.0, 9.0), tuple(range(5, 15)), prompts=PROMPTS[:1])
    build(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 12_000_000
    started = time.monotonic()
    page = visit(tmp_path)
    expect(page.locator("#count")).to_have_text("1000 jobs")
    assert time.monotonic() - started < 10  # 1 s on an idle machine
    page.locator("#filter").fill("solver_03 steps=7")
    expect(rows(page)).to_have_count(5)


@pytest.mark.slow
def test_the_command_makes_the_same_picture_again(tmp_path):
    import numpy as np
    from PIL import Image

    prompt = 'fox, "red" background $x'
    run = [sys.executable, "-m", "research"]
    first = [
        "-m",
        "scheduler=ddim",
        "steps=2,3",
        "sweep_name=first",
        "metrics=none",
        "tracker=none",
        "images_per_prompt=2",
    ]
    prompts = json.dumps(["owl", prompt])
    subprocess.run([*run, *first, f"prompts={prompts}"], cwd=tmp_path, check=True, capture_output=True)
    sweep = read_sweep(tmp_path / "outputs" / "first")
    row = sweep.done[1]
    image = next(i for i in row.images if i.prompt == prompt)
    command = image_command(row, image.file).removeprefix("research ")
    subprocess.run(f"{sys.executable} -m research {command}", shell=True, cwd=tmp_path, check=True, capture_output=True)
    (again,) = (tmp_path / "again").glob("*/images/*.png")
    made, was = (np.asarray(Image.open(f)).astype(int) for f in (again, row.image_path(image)))
    # the noise is the same to the bit; kernels round otherwise in a batch of another size
    assert abs(made - was).max() <= 1


def test_the_server_shows_the_sweep_and_nothing_else(sweep, tmp_path):
    report = LiveReport(sweep)
    servers = _serve(report, 0)
    server = servers[0]
    try:
        (sweep / ".hidden").write_text("x")

        def status(path, **headers):
            request = Request(f"http://{LOOPBACK}:{server.server_port}{path}", headers=headers)
            try:
                return urlopen(request, timeout=5).status
            except OSError as error:
                return getattr(error, "code", None)

        assert server.server_address[0] == "127.0.0.1"
        assert status("/report.html") == 200
        assert status("/live.json") == 200
        for path in ("/.hidden", "/plots/", "/plots", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/nothing"):
            assert status(path) == 404, path
        assert status("/report.html", Host="attacker.example") == 404
    finally:
        for each in servers:
            each.shutdown()
            each.server_close()
        (sweep / ".hidden").unlink()


@pytest.mark.slow
def test_the_page_has_names_for_what_can_be_used(visit, sweep):
    """Every control and picture has a name that a screen reader can say."""
    page = visit(sweep)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, img')].filter((e) => !e.closest('dialog:not([open])')
        && !(e.textContent.trim() && e.tagName === 'BUTTON') && !e.getAttribute('aria-label') && !e.alt && !e.labels?.length)
        .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map((e) => e.id)")
    doubled = {i for i in ids if ids.count(i) > 1}
    assert not {i for i in doubled if not re.match(r"(fid|clip_score)_vs_", i)}

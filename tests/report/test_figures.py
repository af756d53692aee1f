"""Figures: lines are told apart, axes say how they are scaled and where better is, and labels do not lie on each other."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from itertools import product
from pathlib import Path

import pytest
from support.sweep_samples import write_job, write_sweep

from research import drawing
from research.drawing import COLOURS, flattened, look, looks, said_better
from research.errors import UserError
from research.report import read_sweep
from research.report.cli import main
from research.report.draw import DPI, draw, png
from research.report.plots import figures
from research.results.read import Sweep

SCHEDULERS = ("ddim", "euler", "dpmpp_2m", "heun")


def drawn(sweep: Sweep, names: Collection[str] = ()) -> dict:
    """The figures of these names, or all; a warning of matplotlib's, of a layout that did not come about say, is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {panels.name: draw(sweep, panels) for panels in figures(sweep) if not names or panels.name in names}
        for figure in found.values():
            png(figure)
    return found


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    folder = tmp_path_factory.mktemp("figures") / "twelve"
    return read_sweep(write_sweep(folder, SCHEDULERS, (1.0, 3.0, 7.0), (2, 10, 25), images=False))


@pytest.fixture(scope="module")
def figures_of_twelve(twelve: Sweep) -> dict:
    return drawn(twelve, {"clip_score_vs_nfe", "clip_score_vs_fid", "fid_vs_guidance", "fid_vs_scheduler"})


def test_twelve_lines_have_twelve_colours(figures_of_twelve: dict) -> None:
    legend = figures_of_twelve["clip_score_vs_nfe"].legends[0]
    colours = [handle.get_color() for handle in legend.legend_handles]
    assert len(colours) == len(set(colours)) == 12


@pytest.mark.parametrize(("first", "second"), [(12, 1), (4, 3), (3, 4), (5, 4), (12, 2), (24, 1), (2, 12)])
def test_no_two_lines_look_alike(first: int, second: int) -> None:
    found = looks(list(product(range(first), range(second))))
    assert len(set(found)) == first * second


def test_looks_go_by_the_first_setting_where_there_are_more_than_colours() -> None:
    keys = list(product("abcdef", (1, 3, 7)))
    found = dict(zip(keys, looks(keys), strict=True))
    assert {found["a", scale].colour for scale in (1, 3, 7)} == {COLOURS[0]}
    assert {(found[name, 3].marker, found[name, 3].line) for name in "abcdef"} == {(found["a", 3].marker, "--")}


def test_the_page_has_a_colour_for_each_of_the_palette() -> None:
    css = (Path(drawing.__file__).parent / "report/templates/page.css").read_text()
    assert all(css.count(f"--s{place}:") == css.count("--ink:") for place in range(len(COLOURS)))
    assert [look(place) for place in range(4)] == [look(place) for place in range(4)]


def test_an_axis_is_logarithmic_where_outliers_flatten_the_rest() -> None:
    assert flattened([7.1, 7.4, 8.0, 8.8, 9.1, 300.0])
    assert not flattened([7, 9, 12, 15])
    assert not flattened([0.0, 7.1, 7.4, 8.0, 9.1, 300.0]), "zero has no place on it"
    assert not flattened([70, 71, 72, 73, 74, 5]), "it would not help against a low one"
    assert not flattened([5.0] * 8)


@pytest.mark.slow
def test_axes_say_their_scale_and_where_better_is(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "far", SCHEDULERS, (3.0,), (4, 20, 25, 30, 40), images=False)
    for number in range(2):
        write_job(folder, scheduler="euler", scale=3.0, steps=1 + number, images=False, number=90 + number)
    found = drawn(read_sweep(folder))
    axes = found["fid_vs_nfe"].axes[0]
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "FID (lower is better), log axis"
    assert axes.get_xlabel() == "NFE, log axis"
    trade = found["clip_score_vs_fid"].axes[0]
    assert trade.get_ylabel().startswith("CLIP score (higher is better)")
    assert trade.get_xlabel().startswith("FID (lower is better)")
    assert said_better("NFE", 0) == "NFE"


def test_every_axis_of_the_sweep_has_a_figure_of_both_metrics(twelve: Sweep, figures_of_twelve: dict) -> None:
    expected = {f"{m}_vs_{x}" for m in ("fid", "clip_score") for x in ("guidance", "steps", "scheduler")}
    assert expected <= {panels.name for panels in figures(twelve)}
    names = [text.get_text() for text in figures_of_twelve["fid_vs_scheduler"].axes[0].get_xticklabels()]
    assert names == list(SCHEDULERS)


def test_facets_share_their_axes(figures_of_twelve: dict) -> None:
    for name in ("fid_vs_guidance", "clip_score_vs_fid"):
        panels = figures_of_twelve[name].axes
        assert len(panels) == 3
        assert len({(axes.get_xlim(), axes.get_ylim()) for axes in panels}) == 1


@pytest.mark.parametrize("scales", [(1.0, 3.0, 7.0), (1.0, 7.0)], ids=str)
@pytest.mark.spread(1)
def test_labels_of_points_and_ticks_do_not_lie_on_each_other(tmp_path: Path, scales: tuple[float, ...]) -> None:
    steps = (1, 2, 3, 4, 5, 6, 7, 8, 20, 25, 49, 50)
    sweep = read_sweep(write_sweep(tmp_path / "many", SCHEDULERS[:2], scales, steps, images=False))
    found = drawn(sweep, {"clip_score_vs_nfe", "clip_score_vs_fid", "fid_vs_scheduler", "fid_vs_steps"})
    # as in SVG files, on screens, and in PNG files
    for figure, dpi in product(found.values(), (72, 100, DPI)):
        figure.dpi = dpi
        renderer = figure.canvas.get_renderer()
        for axes in figure.axes:
            of_points = [text for text in axes.texts if text.get_visible()]
            for group in (of_points, [t for t in axes.get_xticklabels() if t.get_text()]):
                boxes = [text.get_window_extent(renderer) for text in group]
                assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.slow
def test_long_names_are_laid_out(tmp_path: Path) -> None:
    folder = tmp_path / "long"
    for number, (name, text) in enumerate(product(SCHEDULERS, ("a", "b"))):
        task = {
            "_target_": "research.tasks.TextToImage",
            "negative_prompt": f"{text} very long one, with much in it " * 4,
        }
        write_job(folder, scheduler=name * 8, scale=3.0 + number % 3, steps=5, images=False, number=number, task=task)
    drawn(read_sweep(folder))


def test_a_figure_that_is_asked_for(twelve: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    found = figures(replace(twelve, figures=[("fid", "scheduler.name"), ("clip_score", "steps")]))
    assert len({panels.name for panels in found}) == len(found)
    with pytest.raises(UserError, match=r"the axis 'eta'; accepted are scheduler.name, guidance.scale, steps"):
        figures(replace(twelve, figures=[("fid", "eta")]))
    assert main([str(twelve.directory), "--figure", "kid:steps"]) == 2
    assert "accepted are" in capsys.readouterr().err
    assert main([str(twelve.directory), "--figure", "kid"]) == 2

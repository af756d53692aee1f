"""The picture of the course: beta schedules and input scales as curves, and what they do to a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from research.csv_text import csv_text
from research.drawing import COLOURS, INK, LINES, plain_frame
from research.errors import ConfigError
from research.labels import value_label
from research.schedule.arguments import Values, number, product, several
from research.schedule.curves import Curve, beta_curve
from research.schedule.plot import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULTS: Mapping[str, Values] = {
    "beta_schedule": ["linear", "squaredcos_cap_v2"],
    "beta_start": [0.0001],
    "beta_end": [0.02],
    "num_train_timesteps": [1000],
    "rescale_betas_zero_snr": [False],
    "input_scale": [1.0],
}
_NAMES = {"squaredcos_cap_v2": "cosine", "scaled_linear": "scaled linear"}
_WITHOUT_RANGE = ("squaredcos_cap_v2",)  # schedules that no beta_start and beta_end change
_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # of the timesteps, in the table and in the strips
_STRIPS_AT_MOST = 10


@dataclass(frozen=True)
class BetaSchedule:
    """A beta schedule with an input scale.

    Attributes:
        label: what tells it from the others.
        betas: as diffusers' schedulers take them.
        input_scale: by which the picture is multiplied before it is noised.
        curve: its levels.
        hue, line: places of colour and line: one colour a beta schedule, one line an input scale.
    """

    label: str
    betas: Mapping[str, Any]
    input_scale: float
    curve: Curve
    hue: int
    line: int


def compose(values: Mapping[str, Values]) -> list[BetaSchedule]:
    """Every combination of the values; those that come to the same betas are one.

    Raises:
        ConfigError: a value that cannot be.
    """
    for key in ("beta_start", "beta_end"):
        for value in values[key]:
            number(0.0, 1.0)(key, value)
    scales = [float(number(1e-6)("input_scale", value)) for value in values["input_scale"]]
    for value in values["num_train_timesteps"]:
        number(2, 100_000, whole=True)("num_train_timesteps", value)
    told_apart = [key for key in several(values) if key not in ("beta_schedule", "input_scale")]
    found: list[BetaSchedule] = []
    betas_seen: list[dict[str, Any]] = []
    for betas in product(values, [key for key in DEFAULTS if key != "input_scale"]):
        if betas["beta_schedule"] in _WITHOUT_RANGE:
            betas = {key: value for key, value in betas.items() if key not in ("beta_start", "beta_end")}
        if betas in betas_seen:
            continue
        betas_seen.append(betas)
        name = str(betas["beta_schedule"])
        words = [_NAMES.get(name, name), *(f"{k}={value_label(betas[k])}" for k in told_apart if k in betas)]
        for line, scale in enumerate(scales):
            more = [f"input x {scale:g}"] if len(scales) > 1 else []
            curve = beta_curve(betas, input_scale=scale)
            found.append(BetaSchedule(", ".join(words + more), betas, scale, curve, len(betas_seen) - 1, line))
    return found


# -- text


def _rows(schedule: BetaSchedule) -> list[tuple[float, float, float, float]]:
    last = len(schedule.curve.times) - 1
    places = dict.fromkeys(round(share * last) for share in _SHARES)
    return [
        (schedule.curve.times[i], level.alphas_cumprod, level.sigma, level.log_snr)
        for i in places
        for level in (schedule.curve.levels[i],)
    ]


def lines(schedules: Iterable[BetaSchedule]) -> Iterable[str]:
    """A few timesteps of each schedule."""
    header = ("t", "alphas_cumprod", "sigma", "log_snr")
    for schedule in schedules:
        yield f"{schedule.label}  ({len(schedule.curve.times)} timesteps)"
        rows = [header, *(tuple(f"{value:.5g}" for value in row) for row in _rows(schedule))]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        yield from ("  " + "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
        yield ""


def as_csv(schedules: Iterable[BetaSchedule]) -> str:
    """A line a timestep of each schedule."""
    rows: list[Sequence[Any]] = [("label", "beta_schedule", "input_scale", "t", "alphas_cumprod", "sigma", "log_snr")]
    for one in schedules:
        for t, level in zip(one.curve.times, one.curve.levels, strict=True):
            numbers = (t, level.alphas_cumprod, level.sigma, level.log_snr)
            settings = (one.label, one.betas["beta_schedule"], f"{one.input_scale:g}")
            rows.append((*settings, *(f"{value:.9g}" for value in numbers)))
    return csv_text(rows)


def as_json(schedules: Iterable[BetaSchedule]) -> str:
    """The table as one object; numbers that are infinite are null."""
    content = [
        {
            "label": one.label,
            "betas": dict(one.betas),
            "input_scale": one.input_scale,
            "levels": [
                {
                    key: value if math.isfinite(value) else None
                    for key, value in zip(("t", "alphas_cumprod", "sigma", "log_snr"), row, strict=True)
                }
                for row in _rows(one)
            ],
        }
        for one in schedules
    ]
    return json.dumps({"schedules": content}, indent=1, ensure_ascii=False)


# -- figure


def course_figure(schedules: Sequence[BetaSchedule], image: str | None = None) -> Figure:
    """Share of picture and of noise over training time, log-SNR over training time, and a picture noised by each schedule.

    Args:
        schedules: as `compose` gives them.
        image: a picture file, or "zoo:NAME"; None draws no strips.

    Raises:
        ConfigError: no such picture, or more schedules than strips can be looked at.
    """
    from matplotlib.figure import Figure

    if image and len(schedules) > _STRIPS_AT_MOST:
        raise ConfigError(
            f"--image: found {len(schedules)} schedules; accepted are {_STRIPS_AT_MOST} and fewer, or no image."
        )
    strips = 1.05 * len(schedules) + 0.3 if image else 0.0
    figure = Figure(figsize=(10.0, 3.9 + strips), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[3.9, strips]) if image else (figure, None)
    above, below = parts
    left, right = above.subplots(1, 2)
    for one in (s for s in schedules if s.line == 0):
        colour = COLOURS[one.hue % len(COLOURS)]
        alphas = [level.alphas_cumprod for level in _unscaled(one)]
        left.plot(one.curve.times, [math.sqrt(a) for a in alphas], color=colour, label=one.label)
        left.plot(one.curve.times, [math.sqrt(max(1 - a, 0.0)) for a in alphas], color=colour, linestyle="--")
    left.set_title("share of picture (solid) and of noise (dashed)", fontsize=10, color=INK)
    left.set_ylabel("sqrt(alphas_cumprod), sqrt(1 - alphas_cumprod)", fontsize=9, color=INK)
    for one in schedules:
        kind = {"color": COLOURS[one.hue % len(COLOURS)], "linestyle": LINES[one.line % len(LINES)]}
        heights = [shown(level.log_snr) for level in one.curve.levels]
        right.plot(one.curve.times, heights, label=one.label, linewidth=1.4, **kind)
    right.set_title("log-SNR", fontsize=10, color=INK)
    right.set_ylim(-16, 12)
    right.legend(frameon=False, fontsize=7.5, labelcolor=INK)
    for axes in (left, right):
        plain_frame(axes)
        axes.set_xlabel("timestep", fontsize=9, color=INK)
    if image:
        _strips(below, schedules, image)
    return figure


def _unscaled(schedule: BetaSchedule) -> Any:
    return beta_curve(schedule.betas).levels


def _strips(figure: Any, schedules: Sequence[BetaSchedule], image: str) -> None:
    import torch

    picture = _pixels(image)
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    grid = figure.subplots(len(schedules), len(_SHARES), squeeze=False)
    for i, (row, one) in enumerate(zip(grid, schedules, strict=True)):
        last = len(one.curve.times) - 1
        for axes, share in zip(row, _SHARES, strict=True):
            place = round(share * last)
            alpha = one.curve.levels[place].alphas_cumprod
            # brought to unit variance of picture and noise together, as a network sees it
            noised = math.sqrt(alpha) * picture + math.sqrt(1 - alpha) * noise
            axes.imshow(((noised.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if i == 0:
                axes.set_title(f"t = {one.curve.times[place]:g}", fontsize=8, color=INK)
        row[0].set_ylabel(one.label.replace(", ", "\n"), fontsize=8, color=INK, rotation=0, ha="right", va="center")


def _pixels(image: str) -> Any:
    """A picture [3, H, W] in [-1, 1], at most 128 pixels wide."""
    import numpy as np
    import torch
    from PIL import Image

    from research import pictures

    found = pictures.read("--image", image, 1)[0]
    if not isinstance(found, Image.Image):
        return found * 2 - 1
    found = found.convert("RGB")
    found.thumbnail((128, 128))
    return torch.from_numpy(np.asarray(found).copy()).permute(2, 0, 1).float() / 127.5 - 1

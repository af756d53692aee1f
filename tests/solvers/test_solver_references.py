"""Solvers that diffusers has no class for equal their sources, written down once more in `references`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import references
import torch
from support.tiny_models import text_scheduler

from research.errors import ConfigError
from research.sampling import Guided, NoiseSource, Prediction
from research.sampling.noise import STEP
from research.solvers import SolverFactory
from research.solvers.levels import Levels, TrainedLevels

pytestmark = [pytest.mark.spread(4), pytest.mark.filterwarnings("ignore:Should have ta")]

CONFIG = dict(text_scheduler().config)
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
SHAPE = (4, 3, 5)
SEEDS = (1, 2)


class Given:
    """Levels by sigma."""

    def __init__(self, sigmas: list[float]):
        self.sigmas = sigmas

    def levels(self, trained: TrainedLevels, steps: int) -> Levels:
        grid = [trained.at_sigma(sigma) if sigma else trained.clean() for sigma in self.sigmas]
        return Levels(tuple(grid), trained, 1.0, steps)


def grid(steps: int, flow: bool, end: float = 0.0) -> list[float]:
    """Levels as Karras has them, for flow models from 1 on."""
    if flow:
        return [max((1 - (i / steps) ** 1.3), end) for i in range(steps)] + [end]
    top, low = 14.0 ** (1 / 7), 0.05 ** (1 / 7)
    return [(top + i / max(steps - 1, 1) * (low - top)) ** 7 for i in range(steps)] + [end]


def model(y: torch.Tensor, sigma: float) -> torch.Tensor:
    """A made-up data prediction: no linear one, and none that is the same everywhere."""
    return torch.tanh(y / (1 + sigma)) + 0.3 * torch.sin(3 * y.flip(-1) / (1 + sigma)) + 0.1 * math.cos(4 * sigma)


def start() -> torch.Tensor:
    return torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def sampled(name: str, options: dict[str, Any], sigmas: list[float], flow: bool) -> tuple[torch.Tensor, Any]:
    """By the native solver, over the last level's scale, and the solver."""
    factory = SolverFactory(name, options, FLOW if flow else CONFIG, sigmas=Given(sigmas))
    solver = factory()
    timeline = solver.timeline(len(sigmas) - 1)
    noise = NoiseSource(SEEDS)
    solver.start(noise)
    x = start() * (1.0 if flow else sigmas[0] * timeline[0].signal)
    for stage in timeline:
        scale = 1.0 if flow else stage.signal
        clean = model(x / scale, stage.sigma)
        value = x - clean if flow else (x - stage.signal * clean) / stage.noise
        if flow:
            value = value / stage.sigma
        x = solver.step(Guided(Prediction(value, solver.kind)), x, stage, noise).x
    return x / (1.0 if flow else solver.end_level[0]), solver


def drawing(sigmas: list[float], brownian: bool) -> Any:
    """Noise as the solver draws it, from the same streams."""
    source = NoiseSource(SEEDS)
    if not brownian:
        return lambda s, t: source.draw(STEP, SHAPE, torch.float64)
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    like = torch.zeros((2, *SHAPE), dtype=torch.float32)
    known = [sigma for sigma in sigmas if sigma > 0]
    path = BrownianTreeNoiseSampler(like, min(known), max(known), source.seeds_of(STEP))
    return lambda s, t: path(torch.tensor(s), torch.tensor(t)).double()


CASES: list[tuple[str, dict[str, Any], Any, dict[str, Any]]] = [
    ("dpmpp_2s_a", {}, references.dpmpp_2s_a, {}),
    ("dpmpp_2s_a", {"eta": 0.0}, references.dpmpp_2s_a, {"eta": 0.0}),
    ("dpmpp_2s_a", {"eta": 0.4, "s_noise": 0.9}, references.dpmpp_2s_a, {"eta": 0.4, "s_noise": 0.9}),
    ("dpmpp_3m_sde", {"noise": "fresh"}, references.dpmpp_3m_sde, {}),
    ("dpmpp_3m_sde", {}, references.dpmpp_3m_sde, {}),
    ("dpmpp_3m_sde", {"eta": 0.0}, references.dpmpp_3m_sde, {"eta": 0.0}),
    ("dpmpp_3m_sde", {"eta": 0.5, "s_noise": 1.1}, references.dpmpp_3m_sde, {"eta": 0.5, "s_noise": 1.1}),
    ("res_2m", {}, references.res_multistep, {}),
    ("res_3m", {}, references.res_multistep, {"order": 3}),
    ("res_2s", {}, references.res_singlestep, {}),
    ("res_2s", {"c2": 0.3}, references.res_singlestep, {"c2": 0.3}),
    ("res_3s", {}, references.res_singlestep, {"order": 3}),
    ("res_3s", {"c2": 1 / 3, "c3": 2 / 3}, references.res_singlestep, {"order": 3, "c2": 1 / 3, "c3": 2 / 3}),
    *(("ipndm", {"order": order}, references.ipndm, {"order": order}) for order in (1, 2, 3, 4)),
    *(("ipndm_v", {"order": o}, references.ipndm, {"order": o, "variable": True}) for o in (2, 3, 4)),
    ("gradient_estimation", {}, references.gradient_estimation, {}),
    ("gradient_estimation", {"gamma": 1.5}, references.gradient_estimation, {"gamma": 1.5}),
    *(("er_sde", {"order": order}, references.er_sde, {"order": order}) for order in (1, 2, 3)),
    *(("er_sde", {"scaler": s}, references.er_sde, {"scaler": s}) for s in references.SCALERS),
    ("er_sde", {"points": 200}, references.er_sde, {"points": 200}),
    ("heunpp2", {}, references.heunpp2, {}),
    *(("seeds_2", {"kind": kind}, references.seeds, {"kind": kind}) for kind in ("phi_1", "phi_2")),
    ("seeds_2", {"eta": 0.5, "s_noise": 0.9}, references.seeds, {"eta": 0.5, "s_noise": 0.9}),
    ("seeds_2", {"noise": "brownian"}, references.seeds, {}),
    ("seeds_3", {}, references.seeds, {"order": 3}),
    ("seeds_3", {"eta": 0.0}, references.seeds, {"order": 3, "eta": 0.0}),
    *((f"dpm_solver_{order}", {}, references.dpm_solver, {"order": order}) for order in (2, 3)),
]


@pytest.mark.parametrize("flow", [False, True], ids=["noise", "flow"])
@pytest.mark.parametrize(("name", "options", "reference", "settings"), CASES, ids=[f"{c[0]}-{c[3]}" for c in CASES])
def test_it_gives_what_its_source_gives(name, options, reference, settings, flow):
    for steps, end in ((1, 0.0), (2, 0.0), (7, 0.0), (6, 0.02)):
        sigmas = grid(steps, flow, end)
        found, solver = sampled(name, options, sigmas, flow)
        brownian = any(row.interval for row in solver.table.rows)
        y = start() * (1.0 if flow else sigmas[0])
        expected = reference(model, y, sigmas, drawing(sigmas, brownian), flow, **settings)
        assert float((found - expected).abs().max()) < 1e-5 * float(expected.std())


def test_res_2m_is_that_of_comfyui():
    sigmas = grid(8, False)
    found, _ = sampled("res_2m", {}, sigmas, False)
    expected = references.res_2m_comfy(model, start() * sigmas[0], sigmas, None, False)
    assert float((found - expected).abs().max()) < 1e-8


def test_restart_walks_up_and_down_again():
    sigmas = grid(10, False)
    interval = {"lo": 0.1, "hi": 2.0, "times": 2, "steps": 3}
    found, solver = sampled("restart", {"intervals": [interval]}, sigmas, False)
    y = start() * sigmas[0]
    expected = references.restart(model, y, sigmas, drawing(sigmas, False), False, **interval)
    assert float((found - expected).abs().max()) < 1e-8
    assert len(solver.table.rows) == 19 + 2 * 3 * 2
    noisy = [stage.step for stage, row in zip(solver.table.plan, solver.table.rows, strict=True) if row.noise]
    assert len(noisy) == 2


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("dpmpp_2s_a", {"eta": 2.0}, "options.eta: found 2.0; accepted are numbers of 0 to 1"),
        ("dpmpp_3m_sde", {"order": 4}, "options.order"),
        ("dpmpp_3m_sde", {"noise": "white"}, "options.noise: found 'white'; accepted are 'fresh' and 'brownian'"),
        ("res_3m", {"order": 0}, "options.order"),
        ("res_2s", {"c2": 0.0}, "options.c2: found 0.0; accepted are numbers above 0 and at most 1"),
        ("res_3s", {"c2": 2 / 3}, "accepted are parts that have a third-order method"),
        ("ipndm", {"order": 5}, "options.order"),
        ("gradient_estimation", {"gamma": 0.5}, "options.gamma: found 0.5; accepted are numbers of 1 or more"),
        ("er_sde", {"scaler": "er_sde_6"}, "options.scaler: found 'er_sde_6'; accepted are ode, sde, er_sde_1"),
        ("seeds_2", {"kind": "phi"}, "options.kind: found 'phi'; accepted are 'phi_1' and 'phi_2'"),
        ("seeds_3", {"r1": 0.5, "r2": 0.5}, "options.r2: found 0.5, with r1=0.5; accepted is more than r1"),
        ("restart", {"intervals": [{"lo": 1.0, "hi": 0.5, "times": 1, "steps": 2}]}, "accepted is 0 < lo < hi"),
        ("restart", {"intervals": [{"lo": 1.0}]}, "accepted is a mapping of lo, hi, times, steps"),
        ("dpm_solver_3", {"order": 4}, "options.order"),
        ("res_2m", {"ordr": 3}, "has no option 'ordr'. Did you mean 'order'"),
    ],
)
def test_options_are_looked_at(name, options, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")) as caught:
        SolverFactory(name, options, CONFIG)
    assert "\n" not in str(caught.value)

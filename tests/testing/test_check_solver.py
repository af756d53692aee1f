"""Solvers with the slips that people make: each is found, by the rule that it breaks and at its place; sound ones pass."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from research.check_cli import run as check
from research.sampling.interfaces import StepOutput
from research.solvers import Levels, LinearSolver, SolverFactory, Update, native, to_data
from research.testing import check_plug
from research.testing.gaussian import SCHEDULE
from research.testing.plug_rules import role_of, static_findings
from research.testing.solver_check import check_plan, measured_order


@dataclass(frozen=True)
class Sound(LinearSolver):
    """Two data predictions, extrapolated in half log-SNR: what the others spoil."""

    claimed_order = 2

    def update(self, levels: Levels, i: int) -> Update:
        start, end = levels[i], levels[i + 1]
        if i == 0 or not end.noise:
            return to_data(start, end, {0: 1.0})
        ratio = (end.half_log_snr - start.half_log_snr) / (start.half_log_snr - levels.half_log_snr(i - 1)) / 2
        return to_data(start, end, {0: 1.0 + ratio, 1: -ratio})


class LooksTooFarBack(Sound):
    def update(self, levels, i):
        return to_data(levels[i], levels[i + 1], {0: 1.5, 1: -0.5})


class WeightsDoNotSum(Sound):
    def update(self, levels, i):
        return to_data(levels[i], levels[i + 1], {0: 1.0, 1: 0.1} if i else {0: 1.0})


class DividesByTheEnd(Sound):
    def update(self, levels, i):
        step = levels.half_log_snr(i + 1) - levels.half_log_snr(i)
        return Update({0: 1.0}, {0: step})


class Random(Sound):
    def update(self, levels, i):
        return to_data(levels[i], levels[i + 1], {0: 1.0}, noise=0.001 * float(torch.rand(())) * levels[i + 1].noise)


class Counts(LinearSolver):
    def __init__(self):
        self.calls = 0

    def update(self, levels, i):
        self.calls += 1
        return to_data(levels[i], levels[i + 1], {0: 1.0 + 0.0 * self.calls})


class ChangesLevels(Sound):
    def plan(self, levels):
        object.__setattr__(levels, "grid", levels.grid[::-1])
        return super().plan(levels)


class FirstOrderOnly(Sound):
    def update(self, levels, i):
        return to_data(levels[i], levels[i + 1], {0: 1.0})


class NeedsThreeSteps(Sound):
    def update(self, levels, i):
        levels[3]
        return super().update(levels, i)


class ReturnsNumbers(Sound):
    def update(self, levels, i):
        return {0: 1.0}


class OneEvaluationLess(Sound):
    def plan(self, levels):
        return super().plan(levels)[:-1] if levels.steps > 1 else super().plan(levels)


class Misspelt(LinearSolver):
    def updates(self, levels, i):
        return to_data(levels[i], levels[i + 1], {0: 1.0})


class OneArgumentLess(LinearSolver):
    def update(self, levels):
        return to_data(levels[0], levels[1], {0: 1.0})


FAULTS: dict[type, tuple[str, str]] = {
    LooksTooFarBack: ("looks back", "update"),
    WeightsDoNotSum: ("sum rule", "update"),
    DividesByTheEnd: ("finite", "update"),
    Random: ("noise", "update"),
    Counts: ("state", "update"),
    ChangesLevels: ("in place", "plan"),
    FirstOrderOnly: ("order", "update"),
    NeedsThreeSteps: ("runs", "update"),
    ReturnsNumbers: ("returned type", "update"),
    OneEvaluationLess: ("steps", "plan"),
    Misspelt: ("method name", "updates"),
    OneArgumentLess: ("arguments", "update"),
}


@pytest.mark.parametrize("plug", FAULTS, ids=lambda plug: plug.__name__)
def test_a_linear_solver_with_a_slip(plug: type) -> None:
    rule, place = FAULTS[plug]
    report = check_plug(plug())
    assert {finding.rule for finding in report.findings} == {rule}, str(report)
    finding = report.findings[0]
    assert place in finding.place
    assert "test_check_solver.py:" in finding.place
    assert finding.problem
    assert finding.cure


def test_a_sound_one_passes() -> None:
    report = check_plug(Sound())
    assert report.ok, str(report)
    assert report.role == "linear solver"
    assert {"sum rule", "slices", "order", "batch", "state", "half precision", "prediction kind flow"} <= set(
        report.checked
    )
    assert measured_order(Sound()) == pytest.approx(2, abs=0.15)


@pytest.mark.slow
def test_an_order_that_nobody_claims_is_said() -> None:
    class Plain(LinearSolver):
        update = FirstOrderOnly.update

    notes = check_plug(Plain()).notes
    assert any(note.startswith(("order: 1.0", "order: 0.9")) for note in notes), notes


def natives() -> list[type]:
    for module in pkgutil.iter_modules(native.__path__):
        importlib.import_module(f"{native.__name__}.{module.name}")
    found, left = [], [LinearSolver]
    while left:
        left += (subclasses := left.pop(0).__subclasses__())
        found += [each for each in subclasses if each.__module__.startswith("research.")]
    return list(dict.fromkeys(found))


@pytest.mark.spread(15)
@pytest.mark.parametrize("solver", natives(), ids=lambda cls: cls.__name__)
def test_the_projects_own_pass(solver: type) -> None:
    try:
        plug = solver()
    except TypeError:
        pytest.skip("has no defaults")
    if type(plug).update is LinearSolver.update and type(plug).plan is LinearSolver.plan:
        pytest.skip("a base")
    findings: list[Any] = []
    check_plan(plug, lambda *finding: findings.append(finding), [], [])
    # as published, LCM's scalings keep a part of the latents, and iPNDM-v's weights sum to 1 on even levels alone
    if solver.__name__ in ("LCM", "IPNDMV"):
        assert {finding[0] for finding in findings} == {"sum rule"}
    else:
        assert not findings
    assert not static_findings(plug)


# -- objects of the protocol Solver


class Wrapped:
    """A solver of the protocol, around one of the project's, with a slip in its step."""

    def __init__(self, slip: str = ""):
        self.slip, self.inner = slip, SolverFactory("ddim", {}, SCHEDULE)()
        self.seen = 0.0

    def __getattr__(self, name):
        if name in ("inner", "slip"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def timeline(self, *args, **kwargs):
        return self.inner.timeline(*args, **kwargs)

    def step(self, guided, x, stage, noise):
        if self.slip == "in place":
            x.mul_(1.0)
        new = self.inner.step(guided, x, stage, noise).x
        if self.slip == "noise":
            new = new + 0.01 * torch.randn(new.shape)
        if self.slip == "batch":
            new = new - 0.1 * new.mean(0)
        if self.slip == "latents":
            new = new.double()
        return new if self.slip == "returned type" else StepOutput(new)


@pytest.mark.parametrize("slip", ["", "in place", "noise", "batch", "latents", "returned type"])
@pytest.mark.spread(3)
def test_an_object_of_the_protocol(slip: str) -> None:
    assert role_of(Wrapped()) == "solver"
    report = check_plug(Wrapped(slip))
    assert {finding.rule for finding in report.findings} == ({slip} if slip else set()), str(report)
    assert all("Wrapped" in finding.place for finding in report.findings)


@pytest.mark.slow
def test_by_command(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "faulty_solver.py").write_text(
        "from research.solvers import LinearSolver, to_data\n\n\n"
        "class Lost(LinearSolver):\n"
        "    def update(self, levels, i):\n"
        "        return to_data(levels[i], levels[i + 1], {0: 0.9})\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert check(["faulty_solver:Lost"]) == 1
    out = capsys.readouterr().out
    assert "[sum rule] Lost.update (faulty_solver.py:5)" in out
    assert check(["scheduler=euler"]) == 0
    assert "Euler (linear solver)" in capsys.readouterr().out

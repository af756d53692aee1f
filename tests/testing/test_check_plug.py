"""Plugs with the slips that people make: each is found, by the rule that it breaks and at its place; sound ones pass."""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_jobs import settings_of, working_folder

from research.check_cli import run as check
from research.cli import run
from research.errors import ConfigError
from research.guidance import CFG
from research.jobs.build import build, guidance_of
from research.jobs.compose import Composer
from research.metrics.base import MetricResult
from research.sampling import Branch, Guidance, Guided, Hook, Prediction
from research.tasks import Inversion, TextToImage
from research.testing import check_plug
from research.testing.networks import tiny_text_model
from research.testing.plug_rules import REQUIREMENTS, role_of, static_findings


class Sound(Guidance):
    """What the others spoil."""

    requires = frozenset({"uncond"})

    def __init__(self, scale: float = 2.5):
        self.scale = scale

    def branches(self, state):
        return [Branch(name, state.conditions[name]) for name in ("uncond", "cond")]

    def mixed(self, state, p):
        return p["uncond"].value + state.scale_of(self) * (p["cond"].value - p["uncond"].value)

    def combine(self, state, predictions):
        return Guided(Prediction(self.mixed(state, predictions), predictions["cond"].kind))


def guided(value, p):
    return Guided(Prediction(value, p["cond"].kind))


class OneChannelLess(Sound):
    def combine(self, state, p):
        return guided(self.mixed(state, p)[:, 1:], p)


class OneNumber(Sound):
    def combine(self, state, p):
        return guided(self.mixed(state, p).mean(), p)


class Forgets(Sound):
    def combine(self, state, p):
        self.mixed(state, p)


class Bare(Sound):
    def combine(self, state, p):
        return self.mixed(state, p)


class BarePrediction(Sound):
    def combine(self, state, p):
        return Prediction(self.mixed(state, p), p["cond"].kind)


class NoPrediction(Sound):
    def combine(self, state, p):
        return Guided(self.mixed(state, p))


class DividesByNothing(Sound):
    def combine(self, state, p):
        raise ArithmeticError("nothing to divide by")


class AsksForWhatIsNot(Sound):
    def branches(self, state):
        return [Branch("cond", state.conditions["positive"])]


class ReadsWhatIsNot(Sound):
    def combine(self, state, p):
        return Guided(p["conditioned"])


class ScalesTheLatents(Sound):
    def combine(self, state, p):
        state.x += 0.01
        return super().combine(state, p)


class ScalesAPrediction(Sound):
    def combine(self, state, p):
        p["cond"].value.sub_(p["uncond"].value).mul_(self.scale).add_(p["uncond"].value)
        return Guided(p["cond"])


class ScalesACondition(Sound):
    def branches(self, state):
        state.conditions["cond"].embeds.mul_(1.0001)
        return super().branches(state)


class KeepsItsMean(Sound):
    kept = 0.0

    def combine(self, state, p):
        self.kept = 0.5 * self.kept + 0.5 * state.stage.sigma
        return guided(self.mixed(state, p) + 0.01 * self.kept, p)


class KeepsItsLast(Sound):
    last: Any = None

    def combine(self, state, p):
        value = self.mixed(state, p)
        self.last = value if self.last is None else (self.last + value) / 2
        return guided(self.last, p)


class Double(Sound):
    def combine(self, state, p):
        return guided(self.mixed(state, p).to(torch.float64), p)


class Infinite(Sound):
    def combine(self, state, p):
        return guided(self.mixed(state, p) / 0.0, p)


class UnknownKind(Sound):
    def combine(self, state, p):
        return Guided(Prediction(self.mixed(state, p), "eps"))


class AlwaysEpsilon(Sound):
    def combine(self, state, p):
        return Guided(Prediction(self.mixed(state, p), "epsilon"))


class OverTheBatch(Sound):
    def combine(self, state, p):
        value = self.mixed(state, p)
        return guided(value / value.std() * p["cond"].value.std(), p)


class OverTheImages(Sound):
    def combine(self, state, p):
        value = self.mixed(state, p)
        return guided(value - value.mean(0, keepdim=True), p)


class DrawsTorch(Sound):
    def combine(self, state, p):
        return guided(self.mixed(state, p) + 0.1 * torch.randn(p["cond"].value.shape), p)


class DrawsNumpy(Sound):
    def combine(self, state, p):
        return guided(self.mixed(state, p) * (1 + 0.1 * float(np.random.rand())), p)


class DrawsPython(Sound):
    def combine(self, state, p):
        return guided(self.mixed(state, p) * (1 + 0.1 * random.random()), p)


class OneArgumentLess(Sound):
    def combine(self, state):
        return None


class AsksForNothing(Sound):
    def branches(self, state):
        return []


class AsksTwice(Sound):
    def branches(self, state):
        return [Branch("cond", state.conditions["cond"])] * 2


class RequiresWhatNobodyHas(Sound):
    requires = frozenset({"unconditioned"})


class RequiresLetters(Sound):
    requires = "uncond"


class Misspelt(Sound):
    def combines(self, state, p):
        return None


class MisspeltAll(Guidance):
    def combin(self, state, p):
        return None


class NoScale(Sound):
    def mixed(self, state, p):
        return p["uncond"].value + 2.0 * (p["cond"].value - p["uncond"].value)


class HalfOnly(Sound):
    def combine(self, state, p):
        if p["cond"].value.dtype != torch.float32:
            raise RuntimeError("no kernel for this dtype")
        return super().combine(state, p)


class OnceAStep(Sound):
    def start(self, run):
        self.seen = set()

    def combine(self, state, p):
        if state.stage.step in self.seen:
            raise RuntimeError("this step has been")
        self.seen.add(state.stage.step)
        return super().combine(state, p)


class NoGuidanceAtAll:
    scale = 3.0

    def branches(self, state):
        return []

    def combine(self, state, p):
        return Guided(p["cond"])


FAULTS: dict[type, tuple[str, str]] = {
    OneChannelLess: ("shape", "combine"),
    OneNumber: ("shape", "combine"),
    Forgets: ("returned type", "combine"),
    Bare: ("returned type", "combine"),
    BarePrediction: ("returned type", "combine"),
    NoPrediction: ("returned type", "combine"),
    DividesByNothing: ("runs", "combine"),
    AsksForWhatIsNot: ("runs", "AsksForWhatIsNot"),
    ReadsWhatIsNot: ("runs", "combine"),
    ScalesTheLatents: ("in place", "combine"),
    ScalesAPrediction: ("in place", "combine"),
    ScalesACondition: ("in place", "branches"),
    KeepsItsMean: ("state", "KeepsItsMean"),
    KeepsItsLast: ("state", "KeepsItsLast"),
    Double: ("dtype", "combine"),
    Infinite: ("finite", "combine"),
    UnknownKind: ("kind", "combine"),
    AlwaysEpsilon: ("neutral scale", "AlwaysEpsilon"),
    OverTheBatch: ("batch", "OverTheBatch"),
    OverTheImages: ("batch", "OverTheImages"),
    DrawsTorch: ("noise", "combine"),
    DrawsNumpy: ("noise", "combine"),
    DrawsPython: ("noise", "combine"),
    OneArgumentLess: ("arguments", "combine"),
    AsksForNothing: ("branches", "branches"),
    AsksTwice: ("branches", "branches"),
    RequiresWhatNobodyHas: ("requires", "RequiresWhatNobodyHas"),
    RequiresLetters: ("requires", "RequiresLetters"),
    Misspelt: ("method name", "combines"),
    MisspeltAll: ("method name", "combin"),
    NoScale: ("neutral scale", "NoScale"),
    HalfOnly: ("half precision", "combine"),
    OnceAStep: ("second-order solver", "combine"),
    NoGuidanceAtAll: ("base class", "NoGuidanceAtAll"),
}


# rules that the same slip breaks as well
FOLLOWING = {
    AlwaysEpsilon: ("prediction kind flow",),
    OnceAStep: ("jumps back", "inversion"),
    KeepsItsMean: ("memory",),  # what is left from run to run is also not in a saved state
    KeepsItsLast: ("memory",),
}


@pytest.mark.parametrize("plug", FAULTS, ids=lambda plug: plug.__name__)
@pytest.mark.spread(4)
def test_a_guidance_with_a_slip(plug: type) -> None:
    rule, place = FAULTS[plug]
    report = check_plug(plug())
    assert not report.ok
    rules = [finding.rule for finding in report.findings]
    assert set(rules) <= {rule, *FOLLOWING.get(plug, ())}, str(report)
    finding = report.findings[rules.index(rule)]
    assert place in finding.place
    assert "test_check_plug.py:" in finding.place
    assert finding.problem
    assert finding.cure


class AlsoSound(Hook):
    """Keeps something for a run, draws from it, and has a helper."""

    def on_start(self, run):
        self.before = None

    def pre_step(self, state):
        noise = state.run.noise.draw("hook/mine", state.x.shape[1:], state.x.dtype)
        state.x = state.x + 0.01 * self._small(noise)
        self.before = state.x

    def _small(self, noise):
        return noise.clamp(-1, 1)


class FewerChannels(Hook):
    def pre_model(self, state, inputs):
        return inputs[:, :3]


class Nothing(Hook):
    def post_step(self, state):
        state.x = None


class OtherShape(Hook):
    def pre_step(self, state):
        state.x = state.x[..., :4]


class LeavesOneOut(Hook):
    def post_model(self, state, predictions):
        return {"cond": predictions["cond"]}


class MisspeltHook(Hook):
    def poststep(self, state):
        state.x = state.x * 0


class MisspeltToo(AlsoSound):
    def on_startup(self, run):
        pass

    def post_guidence(self, state):
        pass


class Oops(Hook):
    def pre_step(self, state):
        raise KeyError("oops")


class ReturnsIt(Hook):
    def pre_step(self, state):
        return state.x * 0.5


class ReturnsItToo(Hook):
    def post_guidance(self, state):
        state.guided = state.guided
        return state.guided


class InPlace(Hook):
    def post_step(self, state):
        state.x.clamp_(-3, 3)


class Counts(Hook):
    n = 0

    def pre_step(self, state):
        self.n += 1
        state.x = state.x * (1 + 0.01 * self.n)


class Mixes(Hook):
    def pre_step(self, state):
        state.x = state.x - state.x.mean(0)


class Draws(Hook):
    def pre_step(self, state):
        state.x = state.x + 0.1 * torch.randn_like(state.x)


HOOKS: dict[type, tuple[str, str]] = {
    FewerChannels: ("shape", "pre_model"),
    Nothing: ("latents", "post_step"),
    OtherShape: ("latents", "pre_step"),
    LeavesOneOut: ("returned type", "post_model"),
    MisspeltHook: ("method name", "poststep"),
    MisspeltToo: ("method name", "post_guidence"),
    Oops: ("runs", "pre_step"),
    ReturnsIt: ("assignment", "pre_step"),
    ReturnsItToo: ("assignment", "post_guidance"),
    InPlace: ("in place", "post_step"),
    Counts: ("state", "Counts"),
    Mixes: ("batch", "Mixes"),
    Draws: ("noise", "pre_step"),
}


@pytest.mark.parametrize("plug", HOOKS, ids=lambda plug: plug.__name__)
@pytest.mark.spread(3)
def test_a_hook_with_a_slip(plug: type) -> None:
    rule, place = HOOKS[plug]
    report = check_plug(plug())
    assert {finding.rule for finding in report.findings} == {rule} | ({"memory"} if plug is Counts else set()), str(
        report
    )
    assert any(place in finding.place for finding in report.findings)


@pytest.mark.parametrize("plug", [Sound(), AlsoSound(), CFG(3.0)], ids=lambda plug: type(plug).__name__)
@pytest.mark.spread(1)
def test_sound_ones_pass(plug: object) -> None:
    state = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
    report = check_plug(plug)
    assert report.ok, str(report)
    assert {"batch", "state", "half precision", "jumps back", "inversion", "prediction kind flow"} <= set(
        report.checked
    )
    assert state == (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())


CONF = Path(__file__).parents[2] / "conf"
OWN = [f"guidance={file.stem}" for file in sorted((CONF / "guidance").glob("*.yaml"))]
OWN += [f"hooks={file.stem}" for file in sorted((CONF / "hooks").glob("*.yaml")) if file.stem != "none"]
OWN += [
    f"guidance/modifiers={name}"
    for name in (
        "epsilon_scaling",
        "higs",
        "interval",
        "mimic_threshold",
        "momentum",
        "rescale",
        "schedule",
        "threshold",
        "tsr",
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("choice", OWN)
@pytest.mark.spread(1)
def test_the_projects_own_pass(choice: str) -> None:
    with Composer() as composer:
        config = composer.job(composer.master([]), composer.normalise(["prompts=[a cat]", choice]))
    hooks = [build(node, f"hooks.{name}") for name, node in config["hooks"].items()]
    for plug in hooks or [guidance_of(config)]:
        report = check_plug(plug)
        assert report.ok, str(report)


class OfClasses(Guidance):
    """Guidance between a class and the next one: for models with classes alone."""

    requires = frozenset({"class_label"})
    neutral = 1.0

    def __init__(self, scale: float = 2.0, slip: bool = False):
        self.scale, self.slip = scale, slip

    def branches(self, state):
        cond = state.conditions["cond"]
        other = replace(cond, class_labels=(cond.class_labels + 1) % 4)
        return [Branch("other", other), Branch("cond", cond)]

    def combine(self, state, p):
        value = p["other"].value + state.scale_of(self) * (p["cond"].value - p["other"].value)
        return guided(value - value.mean(0) if self.slip else value, p)


class OnPixels(AlsoSound):
    requires = frozenset({"pixels"})


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize("plug", [OfClasses(), OnPixels()], ids=lambda plug: type(plug).__name__)
def test_plugs_for_models_on_pixels(plug: Any) -> None:
    report = check_plug(plug)
    assert report.ok, str(report)
    assert {"batch", "state", "half precision", "jumps back", "prediction kind v"} <= set(report.checked)
    assert [line for line in report.skipped if line.startswith("inversion: refused")] == report.skipped


def test_a_slip_with_classes() -> None:
    assert {finding.rule for finding in check_plug(OfClasses(slip=True)).findings} == {"batch"}


# -- metrics, schedulers, tasks, models


class Brightness:
    name = "brightness"
    seen = 0

    def __init__(self, slip: str = ""):
        self.slip = slip

    def compute(self, images, prompts, *, device):
        self.seen += 1
        values = [float(np.asarray(image).mean()) for image in images]
        mean = sum(values) / len(values)
        if self.slip == "order":
            mean = values[0]
        elif self.slip == "state":
            mean += self.seen
        elif self.slip == "nan":
            mean = math.nan
        elif self.slip == "text":
            mean = str(mean)
        elif self.slip == "noise":
            mean += float(torch.rand(())) * 1e-9
        elif self.slip == "in place":
            images[0].putpixel((0, 0), (1, 2, 3))
        return MetricResult({"brightness": mean}, {"per_image": values[: 1 if self.slip == "count" else None]})


@pytest.mark.parametrize(
    ("slip", "rule"),
    [
        ("", None),
        ("order", "order"),
        ("state", "state"),
        ("nan", "returned type"),
        ("text", "returned type"),
        ("noise", "noise"),
        ("in place", "in place"),
        ("count", "returned type"),
    ],
)
def test_metrics(slip: str, rule: str | None) -> None:
    report = check_plug(Brightness(slip))
    assert rule in {finding.rule for finding in report.findings} if rule else report.ok, str(report)


class FromItsInput:
    """How far images are from what they were started from, and from what they are sampled as again."""

    name = "from_its_input"
    needs_job = True

    def __init__(self, slip: str = ""):
        self.slip = slip

    def compute(self, images, prompts, *, device, job=None):
        pairs = zip(images, job.inputs(images), job.masks(images), strict=True)
        values = [
            float(np.abs(np.asarray(a, float) - np.asarray(b, float))[np.asarray(m) > 128].mean()) for a, b, m in pairs
        ]
        assert len(job.sample(2)) == len(images)
        mean = values[0] if self.slip == "order" else sum(values) / len(values)
        if self.slip == "in place":
            images[0].putpixel((0, 0), (1, 2, 3))
        return MetricResult({"from_its_input": mean}, {"per_image": values})


@pytest.mark.parametrize("slip", ["", "order", "in place"])
def test_metrics_that_are_told_of_the_job(slip: str) -> None:
    report = check_plug(FromItsInput(slip))
    assert {finding.rule for finding in report.findings} == ({slip} if slip else set()), str(report)
    assert not report.skipped


@pytest.mark.slow
def test_schedulers_tasks_and_models() -> None:
    from diffusers import DDIMScheduler

    class Noisy(DDIMScheduler):
        def step(self, model_output, timestep, sample, **kwargs):
            noisy = model_output + 0.1 * torch.randn(model_output.shape)
            return super().step(noisy, timestep, sample, **kwargs)

    class Sums(TextToImage):
        def start(self, run):
            return super().start(run) + run.seeds[0]

    class Drops(TextToImage):
        def finish(self, run, latents):
            return super().finish(run, latents)[:1]

    assert check_plug(DDIMScheduler()).ok
    assert {f.rule for f in check_plug(Noisy()).findings} >= {"noise"}
    assert check_plug(TextToImage("a cat")).ok
    assert {f.rule for f in check_plug(Sums("a cat")).findings} == {"batch"}
    assert {f.rule for f in check_plug(Drops("a cat")).findings} == {"images"}
    assert check_plug(tiny_text_model("v")).ok
    picture = Path(__file__).parents[2] / "research" / "zoo" / "pictures" / "pizza.png"
    assert role_of(Inversion("a cat", str(picture))) == "task"


def test_what_is_no_plug() -> None:
    with pytest.raises(ConfigError, match=r"found the class Sound; accepted is an object: Sound\(...\)"):
        check_plug(Sound)
    with pytest.raises(ConfigError, match=r"found int, no plug that is known"):
        check_plug(3)


def test_every_requirement_is_known() -> None:
    """What the project's own plugs require is among what a plug may require."""
    from research import guidance, hooks

    for module in (guidance, hooks):
        for name in module.__all__:
            found = getattr(getattr(module, name), "requires", None)
            assert not isinstance(found, frozenset) or found <= REQUIREMENTS, name
    assert tiny_text_model().supports <= REQUIREMENTS


def test_names_of_ones_own_are_no_slips() -> None:
    class Busy(Hook):
        def pre_step(self, state):
            self.prestep(state)

        def prestep(self, state):
            state.x = state.x

        def reset(self):
            pass

    assert static_findings(Busy()) == []


# -- on the command line, and before a sweep

MODULE = """
from research.sampling import Hook

class Fine(Hook):
    def __init__(self, by: float = 0.5):
        self.by = by
    def pre_step(self, state):
        state.x = state.x * self.by

class Slip(Hook):
    def pre_step(self, state):
        return state.x * 0.5

class Doubtful(Fine):
    def poststep(self, state):
        pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    working_folder(tmp_path, monkeypatch, "checked_plugs", MODULE)
    (tmp_path / "conf" / "hooks").mkdir(parents=True)
    (tmp_path / "conf" / "hooks" / "fine.yaml").write_text("fine: {_target_: checked_plugs.Fine, by: 0.7}\n")
    return tmp_path


@pytest.mark.slow
def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(["checked_plugs:Fine", "by=0.9"]) == 0
    assert "Fine (hook): " in capsys.readouterr().out
    assert check(["checked_plugs.Slip", "--json"]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert [finding["rule"] for finding in report["findings"]] == ["assignment"]
    assert check(["checked_plugs"]) == 1
    said = capsys.readouterr().out
    assert "Fine (hook): " in said
    assert "Slip (hook): 1 found\n  error [assignment] Slip.pre_step (checked_plugs.py:11): " in said
    assert check(["--config-dir", str(folder / "conf"), "hooks=fine", "hooks.fine.by=0.8"]) == 0
    for bad in (
        ["nowhere:X"],
        ["checked_plugs:Find"],
        ["checked_plugs:Fine", "of=2"],
        ["checked_plugs:Fine", "by"],
        ["a=b"],
    ):
        assert check(bad) == 2, bad
        assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.slow
def test_the_cheap_part_before_a_sweep(folder: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = [*settings_of(tiny_sd, steps=2), "runtime.progress=lines"]
    assert run([*own, "+hooks.mine._target_=checked_plugs.Slip"]) == 2
    said = capsys.readouterr().err
    assert "hooks.mine: Slip.pre_step (checked_plugs.py:11): returns a value, which nobody takes" in said
    assert not (folder / "outputs").exists()
    assert run(["-m", *own, "+hooks.mine._target_=checked_plugs.Doubtful", "seed=0,1"]) == 0
    said = capsys.readouterr().err
    assert said.count("'poststep' is no method of a hook, so that nobody calls it. Did you mean 'post_step'?") == 1
    assert run([*own, "+hooks.mine._target_=checked_plugs.Fine"]) == 0
    assert "hooks.mine" not in capsys.readouterr().err

"""Sweeps from Python: the jobs of the command line, with objects and with classes that have no file."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

import research
from research.cli import run
from research.compare import compare
from research.errors import UserError
from research.guidance import CFG, PAG, TCFG, Interval, Rescale
from research.hooks import Blur, LatentTransform, NanGuard, Shift
from research.jobs import live_sources
from research.sigmas import Karras
from research.solvers.native.res import ResMultistep
from research.sweeps.described import Described
from research.tasks import ImageToImage, TextToImage

SMALL = {"metrics": "none", "tracker": "none", "progress": False, "report": False, "settings": {"runtime.threads": 1}}
PROMPT = "pizza on a blue background"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def described(folder: Path) -> Described:
    from research.jobs.compose import Composer

    with Composer() as composer:
        return Described(folder / "outputs/default", composer.groups())


def ids(folder: str | Path) -> set[str]:
    return {file.parent.name for file in Path(folder).glob("*/result.json")}


def test_jobs_are_those_of_the_command_line_and_each_goes_on_for_the_other(folder: Path) -> None:
    prompts = [PROMPT, 'a "fox", [red]: ${not.a.key} ???']
    found = research.sweep(
        model="emoji",
        scheduler=["ddim"],
        guidance=[CFG(1), Interval(CFG(3.0), steps=(0.2, 0.8))],
        steps=[1, 2],
        prompts=prompts,
        seed=7,
        sweep_name="both",
        **SMALL,
    )
    assert len(found) == 4
    assert not found.failed
    assert found[0].prompts == prompts
    before = {file: file.stat().st_mtime_ns for file in folder.glob("outputs/both/*/result.json")}
    words = ["tracker=none", "metrics=none", "runtime.threads=1", "steps=1,2", "seed=7", "sweep_name=both"]
    words.append('prompts=["pizza on a blue background","a \\"fox\\", [red]: \\${not.a.key} ???"]')
    assert run(["-m", *words, "guidance.scale=1"]) == 0
    assert run(["-m", *words, "guidance.scale=3", "guidance/modifiers=interval"]) == 0
    assert {file: file.stat().st_mtime_ns for file in folder.glob("outputs/both/*/result.json")} == before
    assert run(["-m", *words, "guidance=tcfg", "guidance.scale=4"]) == 0
    times = {file: file.stat().st_mtime_ns for file in folder.glob("outputs/both/*/result.json")}
    again = research.sweep(guidance=TCFG(4), steps=[1, 2], prompts=prompts, seed=7, sweep_name="both", **SMALL)
    assert {file: file.stat().st_mtime_ns for file in folder.glob("outputs/both/*/result.json")} == times
    assert {job.id for job in again} == ids("outputs/both") - {job.id for job in found}
    assert {row["guidance.scale"] for row in found.rows()} == {1.0, 3.0}


SCRIPT = """
import research
from research.guidance import CFG
from helpers import twice

STRENGTH = {strength}
OTHER = "not used"


def pulled(value):
    return value * STRENGTH  # a comment


class Mine(CFG):
    def __init__(self, scale=3.0, *, power: float = 1.0):
        super().__init__(scale)
        self._power = power

    def combine(self, state, predictions):
        found = super().combine(state, predictions)
        value = twice(pulled(found.prediction.value)) * self._power
        return type(found)(type(found.prediction)(value, found.prediction.kind))


found = research.sweep(guidance=[Mine(2), Mine(2, power=0.5)], steps=1, prompts={prompt!r}, sweep_name="mine", **{small!r})
"""


def script(folder: Path, strength: float = 0.5, edit: tuple[str, str] = ("", "")) -> set[str]:
    text = (
        SCRIPT.format(strength=strength, prompt=PROMPT, small=SMALL).replace(*edit)
        if edit[0]
        else SCRIPT.format(strength=strength, prompt=PROMPT, small=SMALL)
    )
    (folder / "study.py").write_text(text, encoding="utf-8")
    import linecache

    linecache.checkcache()
    sys.modules.pop("helpers", None)
    try:
        return {job.id for job in runpy.run_path("study.py", run_name="__main__")["found"]}
    finally:
        live_sources.forget()


@pytest.mark.slow
def test_a_class_of_a_script_is_known_by_its_source_and_by_what_it_uses(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    (folder / "helpers.py").write_text("def twice(x):\n    return 2 * x\n", encoding="utf-8")
    first = script(folder)
    assert len(first) == 2
    record = json.loads((folder / "outputs/mine" / min(first) / "result.json").read_text())
    assert record["config"]["guidance"]["_target_"] == "__main__.Mine"
    assert set(record["plug_sources"]) == {"__main__.Mine"}
    times = {file: file.stat().st_mtime_ns for file in folder.glob("outputs/mine/*/result.json")}
    # comments, and what it does not use, are nothing of it
    assert script(folder, edit=("# a comment", "# another")) == first
    assert script(folder, edit=('"not used"', '"still not"')) == first
    assert {file: file.stat().st_mtime_ns for file in folder.glob("outputs/mine/*/result.json")} == times
    assert script(folder, strength=0.25).isdisjoint(first)
    assert script(folder, edit=("value * STRENGTH", "value / STRENGTH")).isdisjoint(first)
    (folder / "helpers.py").write_text("def twice(x):\n    return x + x\n", encoding="utf-8")
    assert script(folder).isdisjoint(first)
    # the command line reads, reports and compares such a folder, and says where such a class is
    assert len(research.load_sweep("outputs/mine")) >= 2
    from research.report.cli import main as report

    assert report(["outputs/mine"]) == 0
    capsys.readouterr()
    assert run(["again", f"outputs/mine/{min(first)}", "--trust-plugs"]) == 2
    assert "defined in a notebook or in a script" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("uses", "said"),
    [
        ("lock = __import__('threading').Lock()", "uses lock, a lock"),
        ("lock = open(__file__)", "uses lock, a TextIOWrapper"),
    ],
)
def test_a_variable_that_cannot_be_told_is_refused(folder: Path, uses: str, said: str) -> None:
    text = (
        f"import research\nfrom research import Hook\n{uses}\n\nclass Mine(Hook):\n    def post_step(self, state):\n"
        f"        lock\n\nresearch.sweep(hooks=Mine(), steps=1, prompts='a', **{SMALL!r})\n"
    )
    (folder / "study.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        runpy.run_path("study.py", run_name="__main__")
    assert not ids("outputs/default")


def test_values_that_a_class_uses_are_told_by_content(folder: Path) -> None:
    import torch

    def digest(**values: object) -> str:
        main = sys.modules["__main__"]
        text = "class Told:\n    def __call__(self, x):\n        return x * weight + other(x)\n"
        (folder / "told.py").write_text(text, encoding="utf-8")
        exec(compile(text, str(folder / "told.py"), "exec"), space := {"__name__": "__main__"})
        for name, value in {"Told": space["Told"], **values}.items():
            setattr(main, name, value)
        try:
            live_sources.register(space["Told"], "hooks")
            return live_sources.digest("__main__.Told", lambda name: None)
        finally:
            live_sources.forget()
            for name in ("Told", *values):
                delattr(main, name)

    one = digest(weight=torch.ones(3), other=torch.nn.Linear(2, 2))
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 2)
    two = digest(weight=torch.ones(3), other=net)
    assert one != two
    assert digest(weight=torch.ones(3), other=net) == two
    assert digest(weight=torch.zeros(3), other=net) != two
    assert digest(weight=torch.ones(3, dtype=torch.float64), other=net) != two
    with torch.no_grad():
        net.weight.add_(1)
    assert digest(weight=torch.ones(3), other=net) != two
    assert digest(weight=CFG(3), other=len) != digest(weight=CFG(4), other=len)
    assert digest(weight=Path("a"), other={"x": [1, (2.0, None)]}) != digest(
        weight=Path("b"), other={"x": [1, (2.0, None)]}
    )


def test_objects_as_overrides(described: Described) -> None:
    write = described
    assert write.guidance(CFG(3)) == ("guidance=cfg",) or write.guidance(CFG(3)) == ("guidance=cfg", "guidance.scale=3")
    assert write.guidance(CFG()) == ("guidance=cfg", "guidance.scale=7.5")
    assert write.guidance(Interval(Rescale(CFG(5), phi=0.7), steps=(0.2, 0.8))) == (
        "guidance=cfg",
        "guidance.scale=5",
        "guidance.modifiers.rescale={_target_:research.guidance.Rescale,phi:0.7}",
        "guidance.modifiers.interval={_target_:research.guidance.Interval,steps:[0.2,0.8]}",
    )
    assert write.guidance(PAG(2, base=CFG(5)))[:3] == (
        "guidance=none",
        "guidance._target_=research.guidance.PAG",
        "guidance.scale=2",
    )
    assert write.hooks([NanGuard(), LatentTransform(Shift(2), steps=[0.6, 0.7])])[0] == "hooks=none"
    assert write.hooks(["record", LatentTransform(Blur(0.6))])[0] == "hooks=record"
    assert write.hooks(LatentTransform(Blur(0.6)))[1].startswith("hooks.blur={_target_:research.hooks.LatentTransform")
    assert write.scheduler(ResMultistep(order=2)) == ("scheduler=res_2m",)
    assert write.scheduler("TCDScheduler") == ("scheduler=custom", "scheduler.class_name=TCDScheduler")
    from diffusers import EulerDiscreteScheduler

    assert (
        write.scheduler(EulerDiscreteScheduler(use_karras_sigmas=True))[1]
        == "scheduler.class_name=EulerDiscreteScheduler"
    )
    assert write.sigmas(Karras(rho=5.0)) == ("sigmas=karras", "sigmas.rho=5.0")
    picture = Image.new("RGB", (32, 32), (9, 9, 9))
    lines = write.task(ImageToImage("a fox", picture, strength=0.5))
    assert lines[0] == "task=image_to_image"
    assert 'prompts=["a fox"]' in lines
    assert "task.strength=0.5" in lines
    (file,) = (described.folder / "given").iterdir()
    assert Image.open(file).tobytes() == picture.tobytes()
    described.take_back()
    assert not described.folder.exists()


def outer():
    class Inside(CFG):
        pass

    return Inside


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scheduler": "ddimm"}, "Did you mean 'ddim'"),
        ({"guidance": [CFG(3), 3.0]}, "guidance"),
        ({"guidance": outer()(3)}, "Inside, which cannot be imported|outer.<locals>.Inside"),
        ({"hooks": LatentTransform(lambda x: x)}, "lambda"),
        ({"steps": []}, "steps: found an empty list"),
        ({"steps": "many"}, "steps: found 'many'"),
        ({"task": TextToImage("a"), "prompts": ["b"]}, "prompts: is set by task and by prompts"),
        ({"prompts": ["a", 3]}, "prompts"),
        ({"model": 3}, "model: found 3"),
        ({"model": "nowhere-at-all"}, "nowhere-at-all"),
        ({"settings": {"steps": 2}, "steps": 3}, "steps: given twice"),
        ({"settings": {"hydra/launcher": "joblib"}}, "runs jobs in this process"),
        ({"settings": {"guidance.skale": 3}}, "skale"),
        ({"zip": [("steps", "seed")], "steps": [1, 2], "seed": [1, 2, 3]}, "differ in length"),
        ({"exclude": ["steps>0"], "steps": [1, 2]}, "leaves none"),
    ],
    ids=str,
)
@pytest.mark.spread(4)
def test_what_cannot_run_is_one_line_and_leaves_nothing(folder: Path, settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        research.sweep(**{**SMALL, "prompts": "a", **settings} if "task" not in settings else {**SMALL, **settings})
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_axes_go_together_and_are_left_out(folder: Path) -> None:
    found = research.sweep(
        scheduler=["ddim", "euler"],
        guidance=[CFG(1), CFG(2)],
        steps=[1, 2],
        prompts=[["fox"], ["owl"]],
        zip=[("scheduler", "guidance")],
        exclude=["steps=2 and scheduler=euler"],
        **SMALL,
    )
    rows = {(row["scheduler.name"], row["guidance.scale"], row["steps"], row["prompts"][0]) for row in found.rows()}
    assert rows == {
        *(("ddim", 1.0, steps, prompt) for steps in (1, 2) for prompt in ("fox", "owl")),
        *(("euler", 2.0, 1, prompt) for prompt in ("fox", "owl")),
    }


@pytest.mark.slow
def test_a_model_that_is_loaded_is_not_loaded_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = research.load_model("emoji", dtype="float32", device="cpu")
    monkeypatch.setattr(
        "research.models.load_model", lambda *args, **kwargs: pytest.fail("loaded again"), raising=False
    )
    found = research.sweep(model=model, steps=1, prompts="fox", **SMALL)
    assert found[0].result.config["model"]["dtype"] == "float32"
    assert found[0].settings["model.path"] == "emoji"
    with torch.no_grad():
        next(model.unet.parameters()).add_(0.1)
    with pytest.raises(UserError, match="weights of emoji were changed"):
        research.sweep(model=model, steps=1, prompts="fox", **SMALL)


def network(x, t):
    return x * 0.5


@pytest.mark.slow
def test_a_wrapped_network_is_known_by_code_and_weights(folder: Path) -> None:
    import torch
    from torch import nn

    from research.models import wrap

    net = nn.Sequential(nn.Linear(2, 2))

    class Call(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, t):
            return self.inner(x)

    def made():
        return wrap(Call(net), predicts="x0", levels="flow", shape=(2,))

    small = {**SMALL, "task": "unconditional", "steps": 2, "settings": {"images_per_prompt": 4, "runtime.threads": 1}}
    first = research.sweep(model=made(), **small)
    assert first[0].done
    assert [job.id for job in research.sweep(model=made(), **small)] == [first[0].id]
    with torch.no_grad():
        net[0].weight.add_(1.0)
    assert research.sweep(model=made(), **small)[0].id != first[0].id
    both = research.sweep(model=[made(), wrap(network, predicts="x0", levels="flow", shape=(2,))], **small)
    assert len(both) == 2
    assert "points" in both[0].pictures


def test_a_folder_as_objects(folder: Path) -> None:
    small = {**SMALL, "metrics": ["clip_score"], "report": True}
    found = research.sweep(
        guidance=[CFG(1), CFG(3)],
        steps=2,
        prompts=[PROMPT, "fox"],
        hooks="record",
        settings={"images_per_prompt": 2},
        **{key: value for key, value in small.items() if key != "settings"},
    )
    again = research.load_sweep("outputs/default")
    assert [job.id for job in again] == [job.id for job in found]
    job = again[0]
    assert job.seeds == [0, 1, 2, 3]
    assert [image.size for image in job.images] == [(32, 32)] * 4
    assert len(job.per_image["clip_score"]) == 4
    assert [stage.step for stage in job.trace.stages] == [0, 1]
    assert again.axes == {"guidance.scale": (1.0, 3.0)}
    assert again.best("nfe").settings["guidance.scale"] == 1.0
    assert again.best("clip_score").metrics["clip_score"] == max(job.metrics["clip_score"] for job in again)
    assert [one.id for one in again.where({"guidance.scale": 3})] == [again[1].id]
    assert again.where(scheduler="ddim", guidance=CFG)[again[0].id[:6]].id == again[0].id
    assert again.report == Path("outputs/default/report.html")
    assert again.report.is_file()
    page = again._repr_html_()
    assert page.count("<img") == 2
    assert "guidance scale" in page
    assert job._repr_html_().count("<img") == 4
    table = again.table
    assert list(table["nfe"]) == [2, 4]
    compared = again.compare(baseline=again[0], metrics="clip_score")
    (outcome,) = compared.outcomes
    assert outcome.difference == pytest.approx(
        again[1].metrics["clip_score"] - again[0].metrics["clip_score"], rel=1e-4
    )
    assert compare(again[0], again[1], metrics=["nfe"]).outcomes[0].difference == 2
    assert "against" in compared._repr_html_()
    for bad in (
        lambda: again.where(steps=9),
        lambda: again.where(nothing=1),
        lambda: again.best("fid"),
        lambda: again["zz"],
    ):
        with pytest.raises(UserError):
            bad()
    with pytest.raises(UserError, match="no such folder"):
        research.load_sweep("outputs/nowhere")


@pytest.mark.slow
def test_failed_jobs_stand_beside_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    (folder / "breaks.py").write_text(
        "from research import Hook\n\n\nclass Breaks(Hook):\n    def __init__(self, at: int):\n        self.at = at\n\n"
        "    def post_step(self, state):\n        if state.stage.step == self.at:\n            raise KeyError('here')\n",
        encoding="utf-8",
    )
    from breaks import Breaks

    found = research.sweep(hooks=[[Breaks(0)], [Breaks(9)]], steps=1, prompts="fox", **SMALL)
    assert [job.done for job in found] == [False, True]
    assert "KeyError" in found.failed[0].error
    assert "failed" in repr(found)

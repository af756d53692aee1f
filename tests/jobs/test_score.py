"""``research-score``: metrics from the images of jobs that are done, without sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from research.cli import run
from research.errors import ConfigError
from research.jobs import run_job
from research.jobs.build import Origin, build, guidance_of
from research.score_cli import main as score_command

METRICS = """
import os
from research.metrics.base import MetricResult

class Brightness:
    name = "brightness"
    def __init__(self, power=1):
        self.power = power
    def compute(self, images, prompts, *, device):
        with open("computed", "a") as file:
            file.write("x")
        if os.path.exists("stop"):
            raise KeyboardInterrupt
        shades = [sum(image.convert("L").tobytes()) / (image.width * image.height) for image in images]
        return MetricResult({"brightness": sum(s ** self.power for s in shades) / len(shades)}, {"prompts": list(prompts)})
"""


def score(arguments: list[str]) -> int:
    """The command, with the metric above trusted."""
    return score_command([*arguments, "--trust-plugs"])


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_sd: Path) -> Path:
    """A sweep of two jobs that are done."""
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "score_plugs.py").write_text(METRICS)
    sys.modules.pop("score_plugs", None)
    assert run(command(tiny_sd)) == 0
    (tmp_path / "computed").unlink()
    return tmp_path / "outputs" / "default"


def command(tiny_sd: Path, *more: str) -> list[str]:
    base = ["-m", f"model.path={tiny_sd}", "tracker=none", "metrics=none", "steps=1", "prompts=[fox,owl]"]
    own = ["runtime.threads=1", "+metrics.light._target_=score_plugs.Brightness", "seed=0,1"]
    return [*base, *own, *more]


def records(sweep: Path) -> dict[str, dict[str, Any]]:
    return {f.parent.name: json.loads(f.read_text()) for f in sorted(sweep.glob("*/result.json"))}


def computed() -> int:
    return len(Path("computed").read_text()) if Path("computed").exists() else 0


@pytest.fixture
def no_sampling(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("something was sampled")

    monkeypatch.setattr(run_job.JobRun, "sample", refuse)


@pytest.mark.usefixtures("no_sampling")
def test_a_jobs_own_metrics_are_replaced(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = records(sweep)
    for folder, record in before.items():  # as if a fault in the metric had been mended since
        file = sweep / folder / "result.json"
        file.write_text(json.dumps({**record, "metrics": {"brightness": -1.0}}))
    (sweep / "results.csv").unlink()
    assert score([str(sweep)]) == 0
    after = records(sweep)
    for folder, record in after.items():
        assert record["metrics"] == before[folder]["metrics"]
        assert record["metrics_info"]["brightness"]["prompts"] == ["fox", "owl"]
        assert record["scored"]["versions"]["torch"]
        kept = set(record) - {"scored"}
        assert {key: record[key] for key in kept} == {key: before[folder][key] for key in kept}
    assert (sweep / "results.csv").is_file()
    assert "2 scored" in capsys.readouterr().out


@pytest.mark.usefixtures("no_sampling")
def test_it_goes_on_where_it_was_interrupted(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score([str(next(sweep.glob("*/result.json")).parent)]) == 0
    Path("stop").touch()
    assert score([str(sweep)]) == 130
    Path("stop").unlink()
    assert computed() == 2
    assert score([str(sweep)]) == 0
    assert computed() == 3
    assert "1 kept, 1 scored" in capsys.readouterr().out
    assert score([str(sweep), "--again"]) == 0
    assert computed() == 5
    assert not list(sweep.glob("*/.*"))


@pytest.mark.slow
@pytest.mark.usefixtures("no_sampling")
def test_other_metrics_are_another_job(sweep: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = records(sweep)
    assert score([str(sweep), "+metrics.light.power=2"]) == 0
    after = records(sweep)
    assert {folder: after[folder] for folder in before} == before
    new = {folder: record for folder, record in after.items() if folder not in before}
    assert len(new) == 2
    for folder, record in new.items():
        source = before[record["scored"]["from"]]
        assert record["job_id"] == folder
        assert record["images"] == source["images"]
        assert record["metrics"]["brightness"] > source["metrics"]["brightness"]
        assert "metrics.light.power=2" in record["overrides"]
    # it is the job that the command would have made, so that nothing is left to do
    capsys.readouterr()
    assert run(command(tiny_sd, "+metrics.light.power=2")) == 0
    assert "2 of 2 jobs done before" in capsys.readouterr().err


@pytest.mark.slow
def test_images_that_changed_are_refused(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = records(sweep)
    image = next(sweep.glob("*/images/*.png"))
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    assert score([str(sweep)]) == 1
    shown = capsys.readouterr()
    assert f"{image}: is not the image that result.json says" in shown.err
    assert "1 scored" in shown.out
    assert "1 refused" in shown.out
    folder = image.parent.parent.name
    assert records(sweep)[folder] == before[folder]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere"], "nowhere: is no folder"),
        (["."], "holds no job with a result.json"),
        ([".", "steps=3"], "holds no job"),
        (["outputs/default", "steps=3"], "argument 'steps=3': accepted are metrics=CHOICE"),
        (["outputs/default", "metrics=fdi"], "Did you mean 'fid'?"),
        (["outputs/default", "metrics=fid,clip_score"], "accepted are metrics=CHOICE"),
    ],
)
@pytest.mark.spread(1)
def test_bad_input(arguments: list[str], expected: str, request: pytest.FixtureRequest) -> None:
    capsys = request.getfixturevalue("capsys")
    if arguments[0].startswith("outputs"):
        request.getfixturevalue("sweep")
    capsys.readouterr()
    assert score(arguments) == 2
    shown = capsys.readouterr().err
    assert expected in shown
    assert shown.count("\n") == 1


# -- records from a stranger


def hostile(sweep: Path, **changed: Any) -> None:
    for file in sweep.glob("*/result.json"):
        record = json.loads(file.read_text())
        record["config"].update(changed)
        file.write_text(json.dumps(record))


CANARY = {"_target_": "builtins.open", "file": "canary", "mode": "w"}
FOREIGN = {
    "a function": ({"metrics": {"light": CANARY}}, "metrics.light._target_: names builtins.open"),
    "inside": (
        {"metrics": {"fid": {"_target_": "research.metrics.FID", "reference": CANARY}}},
        "metrics.fid.reference._target_: names builtins.open",
    ),
    "in a list": (
        {"guidance": {"_target_": "research.guidance.CFG", "scale": [[CANARY]]}},
        "guidance.scale[0][0]._target_: names builtins.open",
    ),
    "another role": (
        {"metrics": {"light": {"_target_": "research.tracking.WandbTracker"}}},
        "metrics.light._target_: names research.tracking.WandbTracker",
    ),
    "the project's own, but no metric": (
        {"metrics": {"light": {"_target_": "research.jobs.store.write", "path": "canary", "content": ""}}},
        "names research.jobs.store.write",
    ),
    "a helper in the room": (
        {"metrics": {"light": {"_target_": "research.metrics.load_features", "name": "canary"}}},
        "names research.metrics.load_features",
    ),
    "a name that the room imports": (
        {"metrics": {"light": {"_target_": "research.metrics.reference.Path", "canary": 1}}},
        "names research.metrics.reference.Path",
    ),
    "settings of Hydra": (
        {"metrics": {"fid": {"_target_": "research.metrics.FID", "_partial_": True}}},
        "metrics.fid._partial_: is not accepted from a record",
    ),
    "a scheduler": (
        {"scheduler": {"name": "x", "class_name": "canary_module.Scheduler", "options": {}}},
        "scheduler.class_name: names canary_module.Scheduler",
    ),
    "a hook": ({"hooks": {"spy": {"_target_": "subprocess.Popen", "args": ["touch", "canary"]}}}, "hooks.spy._target_"),
    "no text": ({"task": {"_target_": {"_target_": "os.system"}}}, "task._target_"),
}


@pytest.mark.parametrize("changed", FOREIGN)
@pytest.mark.spread(2)
def test_a_record_builds_nothing_but_the_projects_own(
    sweep: Path, changed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sections, expected = FOREIGN[changed]
    Path("canary_module.py").write_text("open('canary', 'w')")
    before = records(sweep)
    hostile(sweep, **{"metrics": {"psnr": {"_target_": "research.metrics.PSNR"}}, **sections})
    capsys.readouterr()
    assert score_command([str(sweep)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert len(lines) == 2
    for line in lines:
        assert expected in line
        assert "result.json" in line
        assert "--trust-plugs" in line
    assert not Path("canary").exists()
    assert not computed()
    assert records(sweep).keys() == before.keys()


def test_a_record_does_not_read_the_environment(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CANARY_KEY", "a secret")
    hostile(sweep, metrics={"fid": {"_target_": "research.metrics.FID", "reference": "x${oc.env:CANARY_KEY}"}})
    assert score_command([str(sweep)]) == 1
    shown = capsys.readouterr().err
    assert "${oc.env:CANARY_KEY}" in shown
    assert "a secret" not in shown


def test_the_users_own_are_named_by_hand(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score_command([str(sweep)]) == 1
    assert "metrics.light._target_: names score_plugs.Brightness" in capsys.readouterr().err
    assert not computed()
    Path("mine/metrics").mkdir(parents=True)
    Path("mine/metrics/other.yaml").write_text("dark:\n  _target_: score_plugs.Darkness\n")
    assert score_command([str(sweep), "--config-dir", "mine"]) == 1
    Path("mine/metrics/own.yaml").write_text("light:\n  _target_: score_plugs.Brightness\n")
    assert score_command([str(sweep), "--config-dir", "mine"]) == 0
    assert computed() == 2
    assert score_command([str(sweep), "metrics.light._target_=score_plugs.Brightness", "--again"]) == 0
    assert computed() == 4


def test_roles_hold_where_a_job_is_sampled_again() -> None:
    """Metrics that sample build guidance, hooks and task of the record: each by its own role, nested ones too."""
    record = Origin(Path("result.json"))
    cfg = {"_target_": "research.guidance.CFG", "scale": 2.0}
    colour = {"_target_": "research.guidance.losses.Colour", "colour": "blue"}
    loss = {"_target_": "research.guidance.LossGuidance", "scale": 1.0, "loss": colour, "base": cfg}
    interval = {"_target_": "research.guidance.Interval", "steps": [0.2, 0.8]}
    built = guidance_of({"guidance": {**loss, "modifiers": {"interval": interval}}}, record)
    assert type(built).__name__ == "Interval"
    shift = {"_target_": "research.hooks.Shift", "dx": 1}
    hook = build({"_target_": "research.hooks.LatentTransform", "transform": shift}, "hooks.shift", record)
    assert type(hook).__name__ == "LatentTransform"
    task = build({"_target_": "research.tasks.TextToImage"}, "task", record, prompt=["${not.looked.up}"])
    assert "${not.looked.up}" in str(vars(task))
    wrong = [
        ("guidance", colour),
        ("guidance", {**loss, "loss": shift}),
        ("guidance", {**loss, "base": CANARY}),
        ("guidance", {**loss, "base": {**cfg, "_target_": "research.guidance.checks.check_scale"}}),
        ("hooks.shift", shift),
        ("hooks.shift", {"_target_": "research.hooks.LatentTransform", "transform": cfg}),
        ("task", {"_target_": "research.tasks.base.Conditions"}),
        ("metrics.m", {"_target_": "research.metrics.base.MetricResult", "values": {}}),
    ]
    for key, node in wrong:
        with pytest.raises(ConfigError, match=r"^result\.json: .*--trust-plugs"):
            build(node, key, record)

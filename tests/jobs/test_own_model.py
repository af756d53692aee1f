"""Models of the user's own from configs: swept, scored and resumed like any other, and known by source, arguments and weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from research.check_cli import run as check
from research.cli import run
from research.score_cli import main as score
from tests.support.small_jobs import working_folder

MODELS = """
import torch
from torch import nn
from research.models import wrap


class Net(nn.Module):
    def __init__(self, pull):
        super().__init__()
        self.pull = nn.Parameter(torch.full((2,), pull))

    def forward(self, x, t, labels=None):
        return x * 0 + self.pull + 0.1 * x


def build(pull: float = 0.5, weights: str | None = None, labels: int | None = None):
    net = Net(pull)
    if weights:
        net.load_state_dict(torch.load(weights))
    return wrap(net, predicts="x0", levels="flow", shape=(2,), labels=labels)


def random():
    return wrap(nn.Sequential(nn.Linear(2, 2)), predicts="x0", levels="flow", shape=(2,))


def bare():
    return Net(1.0)


def broken():
    raise ValueError("no such file")


def taken(path):
    return build()


def data():
    return torch.zeros(20, 2) + torch.arange(20)[:, None] / 100
"""
OWN = [
    "model=own",
    "tracker=none",
    "steps=2",
    "images_per_prompt=4",
    "runtime.threads=1",
    "runtime.progress=none",
    "metrics=none",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return working_folder(tmp_path, monkeypatch, "own_models", MODELS)


def jobs(folder: Path) -> dict[str, dict]:
    files = sorted(folder.glob("outputs/default/*/result.json"))
    return {file.parent.name: json.loads(file.read_text()) for file in files}


def test_a_sweep_is_scored_and_resumed_and_a_record_builds_no_foreign_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = ["metrics=points", "metrics.points.reference._target_=own_models.data"]
    line = ["-m", *OWN, "model._target_=own_models.build", "model.pull=0.1,0.9", *points]
    assert run(line) == 0
    found = jobs(folder)
    assert len(found) == 2
    by_pull = {job["config"]["model"]["pull"]: job for job in found.values()}
    assert by_pull[0.1]["metrics"]["energy_distance"] < by_pull[0.9]["metrics"]["energy_distance"]
    assert {"sliced_wasserstein", "energy_distance"} <= set(by_pull[0.1]["metrics"])
    assert by_pull[0.1]["pictures"] == {"points": "pictures/points.png"}
    assert by_pull[0.1]["weights_sha256"] != by_pull[0.9]["weights_sha256"]
    assert "model pull" in (folder / "outputs/default/report.html").read_text().replace("model.pull", "model pull")
    stamps = {file: file.stat().st_mtime_ns for file in folder.glob("outputs/default/*/result.json")}
    assert run(line) == 0
    assert stamps == {file: file.stat().st_mtime_ns for file in folder.glob("outputs/default/*/result.json")}
    capsys.readouterr()
    place = next(iter(stamps)).parent
    assert run(["again", str(place)]) == 2
    assert "own_models.build, which is no model of the project" in capsys.readouterr().err
    assert run(["again", str(place), "--trust-plugs"]) == 0
    assert score([str(folder / "outputs/default"), "metrics=points"]) != 0  # the reference's function is theirs too


def test_source_and_weights_and_arguments_are_the_identity(folder: Path) -> None:
    line = [*OWN, "model._target_=own_models.build"]

    def ids_after(*more: str) -> int:
        assert run([*line, *more]) == 0
        return len(jobs(folder))

    assert ids_after() == 1
    assert ids_after("model.pull=0.5") == 1  # the default
    assert ids_after("model.pull=0.6") == 2
    torch.save({"pull": torch.tensor([0.1, 0.2])}, folder / "a.pt")
    assert ids_after("model.weights=a.pt") == 3
    torch.save({"pull": torch.tensor([0.1, 0.3])}, folder / "a.pt")
    assert ids_after("model.weights=a.pt") == 4
    (folder / "own_models.py").write_text("# a comment\n" + MODELS)
    assert ids_after() == 4
    (folder / "own_models.py").write_text(MODELS.replace("0.1 * x", "0.2 * x"))
    assert ids_after() == 5


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "model._target_: must be given"),
        (["model._target_=own_models.bild"], "Did you mean 'build'?"),
        (["model._target_=own_models.build", "model.pul=1"], "Did you mean 'pull'?"),
        (["model._target_=own_models.bare"], "returned a Net; accepted is what research.models.wrap returns."),
        (["model._target_=own_models.broken"], "own_models.broken cannot be built: no such file"),
        (["model._target_=own_models.taken"], "has an argument 'path', a key that every model has"),
        (["model._target_=own_models.build", "model.compile=true"], "model.compile: found True"),
        (["model._target_=own_models.build", "guidance=cfg"], "CFG needs uncond"),
        (["model._target_=own_models.build", "task.class_label=1"], "has no classes"),
        (["model._target_=own_models.build", "model.labels=2", "task.class_label=2"], "from 0 to 1"),
        (["model._target_=own_models.build", "task=text_to_image", "prompts=[a]"], "a model that takes text"),
        (["model._target_=own_models.build", "runtime.parity=true", "scheduler=ddim"], "is for models that predict"),
    ],
)
@pytest.mark.spread(3)
def test_errors_are_one_line_before_anything_runs(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    assert run([*OWN, *more]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ")
    assert says in told
    assert not (folder / "outputs").exists()


@pytest.mark.slow
def test_research_check_knows_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(["own_models:build", "pull=0.3"]) == 0
    assert check(["model=own", "model._target_=own_models.build", "model.labels=3"]) == 0
    assert capsys.readouterr().out.count("WrappedModel (model): 1") == 2


@pytest.mark.slow
def test_an_installed_package_brings_plugs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site-packages"
    files = {
        "moon_plugs/__init__.py": "",
        "moon_plugs/models.py": MODELS,
        "moon_plugs/plugs.py": "from research.guidance import CFG\nfrom research import Hook\n\n\n"
        "class Firm(CFG):\n    pass\n\n\nclass Still(Hook):\n    pass\n",
        "moon_plugs/conf/model/moons.yaml": "defaults: [own, _self_]\n_target_: moon_plugs.models.build\nlabels: 2\n",
        "moon_plugs/conf/guidance/firm.yaml": "_target_: moon_plugs.plugs.Firm\nscale: 2.0\n",
        "moon_plugs/conf/hooks/still.yaml": "still:\n  _target_: moon_plugs.plugs.Still\n",
        "moon_plugs-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: moon-plugs\nVersion: 1.0\n",
        "moon_plugs-1.0.dist-info/entry_points.txt": "[research.plugins]\nmoons = moon_plugs\nlost = not_there\n",
    }
    for name, content in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(content)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(str(site))
    line = [*OWN[1:], "model=moons", "guidance=firm", "hooks=still", "metrics=none", "task.class_label=1"]
    assert run(line) == 0
    assert "the plugin lost (not_there) is left out: its package is not there" in capsys.readouterr().err
    (job,) = jobs(tmp_path / "work").values()
    assert set(job["plug_sources"]) == {"moon_plugs.models.build", "moon_plugs.plugs.Firm", "moon_plugs.plugs.Still"}
    assert (
        run(["again", str(next((tmp_path / "work").glob("outputs/default/*")))]) == 0
    )  # who installed it vouches for it
    (site / "moon_plugs/models.py").write_text(MODELS.replace("0.1 * x", "0.2 * x"))
    assert run(line) == 0
    assert len(jobs(tmp_path / "work")) == 2

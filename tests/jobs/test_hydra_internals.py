"""What the project uses of Hydra and argparse beyond what they document is where it was: a new version is noticed here."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from research.jobs import hydra_internals as internals
from research.jobs.overrides import parse
from research.package import config_dir


@pytest.fixture(autouse=True)
def _no_hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().clear()


def test_composing_by_hand_is_composing() -> None:
    hydra, loader = internals.create_hydra(str(config_dir()), None)
    lines = ["scheduler=euler", "guidance/modifiers=[interval,rescale]"]
    parsed = [parse(line) for line in lines]
    files = internals.repository(loader, "config", parsed)
    assert "euler" in files.groups()["scheduler"]
    parts, values = internals.list_parts(files, "config", parsed)
    assert not values
    paths = [part.config_path for part in parts]
    assert paths[:2] == ["config", "scheduler/euler"]
    assert not [path for path in paths if path is None or path.startswith("hydra/")]
    ours = internals.merge_parts(loader, parts, files)
    internals.apply_overrides([parse("++steps=7")], ours)
    theirs = hydra.compose_config("config", [*lines, "steps=7"], RunMode.RUN)
    assert {key: value for key, value in ours.items() if key != "hydra"} == {
        key: value for key, value in theirs.items() if key != "hydra"
    }
    quickstart = files.load_config("experiment/quickstart")
    assert quickstart is not None
    assert internals.has_defaults(quickstart)
    assert not internals.has_interpolated_defaults(quickstart)


def test_the_projects_files_are_read_once_and_a_users_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("steps: 3\n")
    read: list[str] = []
    theirs = OmegaConf.load
    monkeypatch.setattr(OmegaConf, "load", lambda file: read.append(file.name) or theirs(file))
    internals._read.clear()
    for steps in (3, 4):
        mine.write_text(f"steps: {steps}\n")
        GlobalHydra.instance().clear()
        hydra, loader = internals.create_hydra(str(config_dir()), str(tmp_path))
        hydra.compose_config("config", [], RunMode.RUN).scheduler.name = "changed"  # nobody else's
        own = internals.repository(loader, "config", []).load_config("mine")
        assert own is not None
        assert own.config.steps == steps
    assert read.count(str(config_dir() / "scheduler" / "ddim.yaml")) == 1
    assert read.count(str(mine)) == 2
    assert hydra.compose_config("config", [], RunMode.RUN).scheduler.name == "ddim"


def test_a_choice_that_was_added_or_removed_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = shutil.copytree(config_dir(), tmp_path / "conf")
    monkeypatch.setattr(internals, "config_dir", lambda: project)
    found = []
    for added in (False, True, False):
        if added:
            (project / "guidance" / "modifiers" / "added.yaml").write_text("x: 1\n")
            (project / "new_group").mkdir()
            (project / "new_group" / "one.yaml").write_text("x: 1\n")
        elif found:
            (project / "guidance" / "modifiers" / "added.yaml").unlink()
            shutil.rmtree(project / "new_group")
        GlobalHydra.instance().clear()
        _, loader = internals.create_hydra(str(project), None)
        found.append(internals.repository(loader, "config", []).groups())
        assert ("added" in found[-1]["guidance/modifiers"], found[-1].get("new_group")) == (
            added,
            ["one"] if added else None,
        )
    assert found[0] == found[2]


def test_defaults_that_look_at_other_choices(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults:\n  - optional guidance: ${scheduler}_guidance\n  - _self_\n")
    _, loader = internals.create_hydra(str(config_dir()), str(tmp_path))
    found = internals.repository(loader, "config", []).load_config("mine")
    assert found is not None
    assert internals.has_interpolated_defaults(found)


def test_the_parser_is_hydras_less_its_version() -> None:
    class Own(argparse.ArgumentParser):
        pass

    parser = internals.command_parser(Own)
    assert isinstance(parser, Own)
    args = parser.parse_args(["-m", "--config-dir", "x", "steps=1"])
    assert args.multirun
    assert (args.config_dir, args.overrides) == ("x", ["steps=1"])
    with pytest.raises(SystemExit):
        parser.parse_args(["--version=0"])
    parser.add_argument("--version", action="store_true")
    assert parser.parse_args(["--version"]).version


def test_class_names_of_the_core_plug_ins() -> None:
    from hydra.utils import get_class

    assert get_class(internals.BASIC_LAUNCHER).__name__ == "BasicLauncher"
    assert get_class(internals.BASIC_SWEEPER).__name__ == "BasicSweeper"


def test_callbacks_of_a_config_are_called() -> None:
    given = OmegaConf.create(
        {"hydra": {"callbacks": {"log": {"_target_": "hydra.experimental.callbacks.LogJobReturnCallback"}}}}
    )
    found = internals.callbacks(given)
    assert [type(each).__name__ for each in found.callbacks] == ["LogJobReturnCallback"]
    found.on_multirun_end(config=given, config_name=None)

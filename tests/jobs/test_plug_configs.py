"""Every choice of the groups of plugs, as it is shipped: it runs, and does something to the pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import research
from research.cli import run
from research.guidance import __all__ as METHODS
from research.hooks import __all__ as HOOKS

CONF = Path(research.__file__).parent.parent / "conf"
SMALL = [
    "steps=6",
    "prompts=[pizza on a blue background]",
    "metrics=none",
    "tracker=none",
    "runtime.threads=1",
    "runtime.progress=none",
    "model.dtype=fp32",
]
# those that look on, and those that wait for a number that is none
CHANGE_NOTHING = {"none", "record", "preview", "nan_guard"}


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def picture(*overrides: str) -> tuple[bytes, dict]:
    """The pixels of the one image of a job, and its record."""
    from PIL import Image

    assert run([*SMALL, *overrides, "sweep_name=one", "resume=false"]) == 0
    (file,) = Path("outputs/one").glob("*/result.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["status"] == "done"
    pixels = Image.open(file.parent / result["images"][0]["file"]).tobytes()
    for found in sorted(file.parent.rglob("*"), reverse=True):
        found.unlink() if found.is_file() else found.rmdir()
    file.parent.rmdir()
    return pixels, result


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("plain"))
        return picture("guidance=cfg")[0]


@pytest.mark.parametrize("name", choices("guidance"))
@pytest.mark.spread(1)
def test_guidance(name: str, plain: bytes) -> None:
    pixels, result = picture(f"guidance={name}")
    assert (pixels == plain) == (name == "cfg")
    assert result["nfe"] == sum(result["nfe_by_branch"].values())


@pytest.mark.parametrize("name", choices("guidance/modifiers"))
@pytest.mark.spread(1)
def test_modifiers(name: str, plain: bytes) -> None:
    # far enough for a threshold to cut
    pixels, _ = picture(f"guidance/modifiers={name}", *(["guidance.scale=7"] if name == "threshold" else []))
    assert (pixels == plain) == (name == "none")


@pytest.mark.parametrize("name", choices("hooks"))
@pytest.mark.spread(1)
def test_hooks(name: str, plain: bytes) -> None:
    # the windows of these lie between the steps of fewer
    steps = ["steps=25"] if name in ("dynamic_prompt", "flip", "shift") else []
    more = ["task=inpaint", "task.image=zoo:pizza", "task.mask=zoo:mask_half"] if name == "repaint" else []
    pixels, _ = picture(f"hooks={name}", *more, *steps)
    before = picture(*steps)[0] if steps else plain
    assert (pixels == before) == (name in CHANGE_NOTHING)


def test_every_public_plug_has_a_config() -> None:
    named = {
        line.rpartition(".")[2].strip()
        for group in ("guidance", "guidance/modifiers", "hooks")
        for file in (CONF / group).glob("*.yaml")
        for line in file.read_text(encoding="utf-8").splitlines()
        if "_target_:" in line
    }
    assert set(METHODS) - named == {"Guidance", "Scales"}  # the base, and what the runner puts around it
    assert set(HOOKS) - named == {"ExtraChannels"}  # the tasks' own

"""Arguments read from source without importing it."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from research.errors import ConfigError
from research.jobs import signatures

SOURCE = '''
import a_package_that_is_not_installed
from dataclasses import dataclass
from {name}_base import Base as Parent

class Plain:
    def __init__(self, scale: float = 2.0, *, power=1 + 1, names=("a",)): ...

class Child(Plain):
    """Inherits its arguments."""

class Far(Parent):
    pass

@dataclass
class Data:
    scale: float
    mode: str = "fast"

class Open:
    def __init__(self, scale=1, **rest): ...

def make(scale, shift=0.5): ...

class Empty: ...
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"plugs_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE.format(name=name))
    (tmp_path / f"{name}_base.py").write_text("class Base:\n    def __init__(self, depth=3): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    signatures.forget()
    return name


def test_classes_functions_and_dataclasses(module: str) -> None:
    def of(name: str) -> dict[str, object]:
        found = signatures.signature(f"{module}.{name}")
        assert found is not None
        return {key: None if value is signatures.UNKNOWN else value for key, value in found.arguments.items()}

    assert of("Plain") == of("Child") == {"scale": 2.0, "power": None, "names": ("a",)}
    assert of("Far") == {"depth": 3}
    assert of("Data") == {"scale": None, "mode": "fast"}
    assert of("make") == {"scale": None, "shift": 0.5}
    assert of("Empty") == {}
    assert signatures.signature(f"{module}.Open").open_ended  # type: ignore[union-attr]
    assert signatures.signature(f"{module}.Data").required == {"scale"}  # type: ignore[union-attr]
    assert module not in sys.modules


def test_agrees_with_inspect() -> None:
    import diffusers

    from research.guidance import CFG
    from research.tasks import TextToImage

    for cls, target in [
        (CFG, "research.guidance.CFG"),
        (TextToImage, "research.tasks.TextToImage"),
        (diffusers.DDIMScheduler, "diffusers.DDIMScheduler"),
    ]:
        found = signatures.signature(target)
        assert found is not None
        assert list(found.arguments) == list(inspect.signature(cls).parameters)
    assert {"eta", "generator"} <= signatures.method_arguments("diffusers.DDIMScheduler", "step")


def test_what_is_not_there_is_said(module: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no 'Plian'.*Did you mean 'Plain'"):
        signatures.signature(f"{module}.Plian")
    with pytest.raises(ConfigError, match="no module 'nowhere'"):
        signatures.signature("nowhere.Plain")
    with pytest.raises(ConfigError, match=r"research.guidence.*Did you mean 'guidance'"):
        signatures.signature("research.guidence.CFG")
    with pytest.raises(ConfigError, match="dotted name"):
        signatures.signature("Plain")
    (tmp_path / f"{module}_broken.py").write_text("def (:\n")
    signatures.forget()
    with pytest.raises(ConfigError, match="line 1"):
        signatures.signature(f"{module}_broken.Plain")


def test_what_the_source_does_not_tell_is_left_open() -> None:
    assert signatures.signature("math.sqrt") is None
    assert signatures.signature("torch.nn.Linear") is None

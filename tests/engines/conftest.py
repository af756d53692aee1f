"""Fixtures of the engines' tests: two tiny models, and the sweep as one process does it, to which all others are compared."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_models import save_tiny_sd
from sweeps import Results, Sweep

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("engines")
            item.add_marker(pytest.mark.timeout(540))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [save_tiny_sd(folder / "one", seed=0, max_tokens=77), save_tiny_sd(folder / "two", seed=1, max_tokens=77)]


@pytest.fixture(scope="session")
def reference(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The results of Hydra's basic launcher."""
    with Sweep(tmp_path_factory.mktemp("basic"), models, "hydra/launcher=basic", pause=0) as sweep:
        sweep.end()
        found = sweep.results()
    assert len(found) == 12
    return found

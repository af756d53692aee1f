"""A training that is killed goes on as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.zoo.training import Loss, Parts, Recipe, fit

SCRIPT = """
import sys, time
from pathlib import Path
import pytest
import torch
from tools.zoo.training import Recipe, fit

torch.manual_seed(0)
torch.set_num_threads(1)
network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.SiLU(), torch.nn.Linear(16, 8))

def loss(module, generator):
    time.sleep(float(sys.argv[2]))
    x = torch.randn(32, 8, generator=generator)
    return (module(x) - x.flip(-1)).square().mean()

fit("tiny", network, loss, Recipe(steps=60, lr=1e-2, seed=5, warmup=5, checkpoint_seconds=0.0), Path(sys.argv[1]))
"""


def start(work: Path, pause: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(work), str(pause)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole, 0).wait(600) == 0
    process = start(broken, 0.1)
    deadline = time.monotonic() + 90
    while not (broken / "tiny.pt").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGKILL)
    process.wait(600)
    reached = torch.load(broken / "tiny.pt", weights_only=True)["step"]
    assert 0 < reached < 60
    assert start(broken, 0).wait(600) == 0

    finished = [torch.load(folder / "tiny.pt", weights_only=True) for folder in (whole, broken)]
    assert [state["step"] for state in finished] == [60, 60]
    for kind in ("module", "ema"):
        for name, tensor in finished[0][kind].items():
            assert torch.equal(tensor, finished[1][kind][name]), (kind, name)


def test_parts_of_a_batch_train_as_the_whole(tmp_path: Path) -> None:
    def whole(module: Any, generator: torch.Generator) -> torch.Tensor:
        return module(torch.randn(6, 3, generator=generator)).square().mean()

    def parts(module: Any, generator: torch.Generator) -> Parts:
        drawn = torch.randn(6, 3, generator=generator)
        return [lambda part=part: module(part).square().sum() / 6 for part in (drawn[:4], drawn[4:])]

    def trained(loss: Loss) -> torch.Tensor:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 1)
        fit(loss.__name__, module, loss, Recipe(4, lr=0.1, seed=0, autocast=False), tmp_path)
        return module.weight.detach()

    assert torch.allclose(trained(parts), trained(whole), atol=1e-6)

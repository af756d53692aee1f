"""How many images are sampled at a time when batch_size is auto."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from research import LoopSampler, load_model
from research.guidance import CFG
from research.jobs import batching
from research.jobs.batching import best_batch_size, choose
from research.tasks import TextToImage


@pytest.mark.parametrize(
    ("seconds", "at_most", "expected"),
    [
        ({4: 3.0, 8: 2.0, 16: 1.0}, 16, 16),
        ({4: 1.0, 8: 1.2, 16: 2.0}, 16, 8),  # 1.2 is not clearly slower
        ({4: 1.0, 8: 1.0, 16: 1.0}, 12, 12),  # between two good ones
        ({4: 1.0, 8: 1.0, 16: 2.0}, 12, 8),
        ({4: 1.0}, 64, 4),  # more did not fit
        ({}, 64, 1),
    ],
)
def test_choice(seconds: dict[int, float], at_most: int, expected: int) -> None:
    assert choose(seconds, at_most) == expected


@pytest.fixture
def sampler(tiny_sd: Path) -> LoopSampler:
    return LoopSampler(load_model(tiny_sd), guidance=CFG(3.0))


def ready(sampler: LoopSampler, count: int) -> TextToImage:
    task = TextToImage(["fox"] * count)
    task.check(sampler.model, count)
    return task


def test_few_images_need_no_probe(sampler: LoopSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_probe", None)
    assert best_batch_size(sampler, ready(sampler, 6), range(6), 10, 6) == 6


def test_it_is_probed_once(sampler: LoopSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_known", {})
    tried: list[int] = []
    probed = batching._seconds

    def counted(sampler: LoopSampler, task: object, seeds: object, steps: int, size: int) -> float:
        tried.append(size)
        probed(sampler, task, seeds, steps, size)  # type: ignore[arg-type]
        return float(size) if size <= 16 else 4.0 * size  # slower from 32 rows on

    monkeypatch.setattr(batching, "_seconds", counted)
    task = ready(sampler, 64)
    assert best_batch_size(sampler, task, range(64), 500, 64) == 8  # images of two rows each
    assert tried == [4, 8, 16, 32]
    assert best_batch_size(sampler, task, range(64), 500, 64) == 8
    assert tried == [4, 8, 16, 32]


def test_memory_caps_it(sampler: LoopSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_known", {})

    def probe(sampler: LoopSampler, task: object, seeds: object, steps: int, size: int) -> float:
        if size > 8:
            raise torch.OutOfMemoryError("out of memory")
        return float(size)

    monkeypatch.setattr(batching, "_seconds", probe)
    assert best_batch_size(sampler, ready(sampler, 64), range(64), 500, 64) == 4


def test_images_do_not_depend_on_what_was_chosen(sampler: LoopSampler) -> None:
    task = ready(sampler, 6)
    small, large = (sampler.sample(task, seeds=range(6), steps=3, batch_size=size) for size in (2, 6))
    assert torch.allclose(small.latents, large.latents, atol=1e-5 * float(large.latents.abs().max()))

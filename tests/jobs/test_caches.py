"""What is kept from job to job, within bounds and with counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from research import caches
from research.caches import Cache
from research.cli import run


def test_the_oldest_leave_first_and_the_newest_stays() -> None:
    cache = Cache("test of bytes", 100)
    for key in "abc":
        assert cache.get(key, lambda key=key: key * 2, 40) == key * 2
    assert "a" not in cache
    assert cache.bytes == 80
    cache.get("b", lambda: "other", 40)  # asked for again
    cache.get("d", lambda: "d", 40)
    assert "c" not in cache
    assert cache.get("b", lambda: "other", 40) == "bb"
    cache.get("large", lambda: "large", 1000)
    assert len(cache) == 1
    assert "large" in cache
    assert (cache.hits, cache.misses) == (2, 5)


def test_none_is_a_value_and_entries_are_bounded() -> None:
    cache = Cache("test of entries", 100, max_entries=2)
    made: list[int] = []
    for number in (1, 1, 2, 3, 1):
        assert cache.get(number, lambda number=number: made.append(number)) is None
    assert made == [1, 2, 3, 1]


def test_counts_since() -> None:
    cache = Cache("test of counts", 100)
    cache.get(1, lambda: 1, 10)
    before = caches.counts()
    assert "test of counts" not in caches.since(before)
    cache.get(1, lambda: 1, 10)
    cache.get(2, lambda: 2, 10)
    assert caches.since(before)["test of counts"] == {"hits": 1, "misses": 1, "bytes": 20}


def test_a_second_job_loads_and_encodes_nothing(tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    caches.clear()
    base = [f"model.path={tiny_sd}", "tracker=none", "steps=2", "prompts=[fox,owl]", "runtime.threads=1"]
    task = ["task=image_to_image", "task.image=zoo:pizza", "metrics=default"]
    assert run(["-m", *base, *task, "scheduler=ddim,euler"]) == 0
    found = {
        result["config"]["scheduler"]["name"]: result["caches"]
        for result in (json.loads(file.read_text()) for file in tmp_path.glob("outputs/*/*/result.json"))
    }
    kept = ("models", "texts", "pictures", "metric models", "references")
    assert all(found["ddim"][name]["misses"] > 0 for name in kept)
    assert all(found["euler"][name]["misses"] == 0 and found["euler"][name]["hits"] > 0 for name in kept)
    assert found["ddim"]["image features"]["hits"] > 0  # CLIP score and FID look at the same images
    assert found["ddim"]["models"]["bytes"] > 1000


def test_texts_are_kept_by_encoder_and_text(tiny_sd: Path) -> None:
    from research import load_model

    caches.clear()
    first, again = load_model(tiny_sd), load_model(tiny_sd)
    wider = load_model(tiny_sd, dtype=torch.float64)
    before = caches.counts()
    embeds = first.text.encode(["a fox", "an owl", "a fox"])
    assert torch.equal(embeds[0], embeds[2])
    assert torch.equal(first.text.encode(["an owl"])[0], embeds[1])
    # by the network itself: one that was loaded anew may be changed, and is asked for itself
    with torch.no_grad():
        next(again.text.encoder.parameters()).mul_(2)
    assert not torch.equal(again.text.encode(["a fox"])[0], embeds[0])
    assert wider.text.encode(["a fox"]).dtype == torch.float64
    counted = caches.since(before)["texts"]
    assert (counted["hits"], counted["misses"]) == (1, 4)

"""The loop on torch's meta device, a stand-in for an accelerator that every machine has: a tensor there has a device and a
dtype and no values, so that what reads one back (which stalls a GPU) or mixes devices raises."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from research.clip import Clip
from research.guidance import CFG, Autoguidance
from research.hooks import Record
from research.jobs.build import build, guidance_of
from research.jobs.compose import Composer
from research.sampling import LoopSampler, loop
from research.sampling.interfaces import Guidance
from research.tasks import TextToImage
from research.testing.networks import tiny_text_model

CONF = Path(__file__).parents[2] / "conf"
GUIDANCE = [f"guidance={file.stem}" for file in sorted((CONF / "guidance").glob("*.yaml"))]
GUIDANCE += [f"guidance/modifiers={file.stem}" for file in sorted((CONF / "guidance" / "modifiers").glob("*.yaml"))]
# a guard and a picture of every step are there to read
READING = ("nan_guard", "preview", "none")
HOOKS = [f"hooks={file.stem}" for file in sorted((CONF / "hooks").glob("*.yaml")) if file.stem not in READING]
SCHEDULERS = [file.stem for file in sorted((CONF / "scheduler").glob("*.yaml")) if file.stem != "custom"]


class Undecoded(TextToImage):
    """Pictures cannot be made without values: they end as latents that have some."""

    ended: Any = None

    def finish(self, run: Any, latents: Any) -> list[Any]:
        self.ended, run.x = latents, torch.zeros(latents.shape)
        return [None] * len(latents)


@lru_cache(maxsize=4)
def on_meta(kind: str = "epsilon") -> Any:
    return copy.deepcopy(tiny_text_model(kind, torch.float16)).to(torch.device("meta"))


@pytest.fixture(scope="module")
def config_of() -> Iterator[Callable[[str], Any]]:
    with Composer() as composer:
        master = composer.master([])
        yield lambda line: composer.job(master, composer.normalise(["prompts=[a cat]", line]))


def run(
    monkeypatch: pytest.MonkeyPatch,
    guidance: Any = None,
    hooks: Any = (),
    model: Any = None,
    steps: int = 4,
    **plugs: Any,
) -> None:
    looks: list[int] = []

    def look(run: Any, recent: list[Any]) -> None:
        looks.append(len(recent))  # the only place that reads: every so many stages, and at the end
        recent.clear()

    monkeypatch.setattr(loop, "_raise_unless_finite", look)
    model = model or on_meta()
    sampler = LoopSampler(model, guidance=CFG(3.0) if guidance is None else guidance, hooks=hooks, **plugs)
    task = Undecoded(["a cat", "an owl"])
    sampler.sample(task, seeds=[1, 2], steps=steps)
    assert task.ended.device.type == "meta"
    assert task.ended.dtype == torch.float16
    assert looks


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.spread(1)
def test_native_solvers(name: str, config_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = config_of(f"scheduler={name}")["scheduler"]
    model = on_meta("flow" if name.startswith("flow") else "epsilon")
    options = dict(scheduler.get("options") or {})
    if model.solvers(scheduler["name"], options).native is None:
        pytest.skip("diffusers' own class")
    run(monkeypatch, Guidance(), model=model, scheduler=scheduler["name"], scheduler_options=options)


@pytest.mark.parametrize("choice", GUIDANCE)
@pytest.mark.spread(2)
def test_guidance(choice: str, config_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # a CLIP model's embeddings of sentences are read before the loop
    monkeypatch.setattr(Clip, "embed_texts", lambda clip, texts: torch.zeros(len(texts), clip.model.projection_dim))
    guidance = guidance_of(config_of(choice))
    run(monkeypatch, guidance, model=moved_with(guidance.plug) if isinstance(guidance.plug, Autoguidance) else None)


def moved_with(guidance: Autoguidance) -> Any:
    """A model that had its second one before it moved."""
    model = copy.deepcopy(tiny_text_model("epsilon", torch.float16))
    weak = model.second(guidance.model, guidance.noise)
    model.to(torch.device("meta"))
    assert model.second(guidance.model, guidance.noise) is weak
    assert weak.device.type == "meta"
    return model


@pytest.mark.parametrize("choice", HOOKS)
@pytest.mark.spread(1)
def test_hooks(choice: str, config_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # a recorder reads at the end
    monkeypatch.setattr(Record, "on_end", lambda hook, run: None)
    hooks = [build(node, choice) for node in config_of(choice)["hooks"].values()]
    longest = max(getattr(hook, "jump_length", 0) for hook in hooks)  # a jump wants more steps than its own
    run(monkeypatch, hooks=hooks, steps=max(4, longest + 1))

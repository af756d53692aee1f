"""Composing many jobs at once gives what Hydra gives for each alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from research.errors import ConfigError
from research.jobs.compose import Composer
from research.jobs.points import points_of
from research.jobs.schema import SEVERAL

CONF = Path(__file__).parents[2] / "conf"
VALUES = {
    "guidance.scale": ["2", "4.5", "1e-2"],
    "steps": ["3", "10"],
    "scheduler.options.eta": ["0.5"],
    "prompts": ["[fox]", '["a, b","c"]', "${prompts_of_mine}"],
    "prompts_of_mine": ["[owl]"],
    "task.negative_prompt": ["null", '"blurry: very"'],
    "hooks.record": ["{_target_:research.hooks.Record,every:2}", "{every:3}"],
    "guidance.modifiers": ["{mine:{_target_:research.guidance.Rescale,phi:1}}", "{interval:{steps:[0,1]}}", "null"],
    "runtime.threads": ["1"],
    "metrics.clip_score": ["{a:{b:1}}"],
    "model.dtype": ["float16"],
    "seed": ["true", "x", '"5"'],
}


def by_hydra(composer: Composer, lines: list[str]) -> dict[str, Any]:
    config = composer.loader.load_configuration(composer.config_name, lines, RunMode.RUN)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    sampler = plain.get("sampler")
    if isinstance(sampler, dict) and isinstance(
        sampler.get("score"), str
    ):  # a choice of the group metrics, which jobs hold whole
        chosen = composer.loader.load_configuration(composer.config_name, [f"metrics={sampler['score']}"], RunMode.RUN)
        (sampler["score"],) = OmegaConf.to_container(chosen.metrics, resolve=True).values()
    return {str(key): value for key, value in plain.items()}


def composed(found: Any) -> Any:
    try:
        return json.dumps(found(), sort_keys=True)
    except Exception as error:
        return f"raises {'ConfigError' if isinstance(error, ConfigError) else 'as Hydra'}"


def _choice(rng: random.Random, name: str, options: list[str]) -> str:
    if name in SEVERAL and rng.random() < 0.5:
        return f"[{','.join(rng.sample(options, 2))}]"
    return rng.choice(options)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.slow
def test_as_hydra_composes(seed: int, tmp_path: Path) -> None:
    """Random choices of all groups and values of all kinds, one composer for all of them."""
    rng = random.Random(seed)
    (tmp_path / "model").mkdir()
    # a choice that reaches into other sections, and one that picks for another group
    (tmp_path / "model" / "wide.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /task: unconditional\nmodel:\n  path: emoji\nguidance:\n  scale: 9\n"
    )
    with Composer(str(tmp_path)) as composer:
        groups = composer.groups()
        names = [name for name in groups if "/" not in name and name not in ("experiment", "hydra")]
        names.append("guidance/modifiers")
        master = composer.master([])
        compared = 0
        for _ in range(12):
            chosen = [f"{name}={_choice(rng, name, groups[name])}" for name in names]
            keys = rng.sample(sorted(VALUES), rng.randrange(3))
            deleted = [rng.choice(["~task.negative_prompt", "~tracker.mode", "~guidance.modifiers"])] * (
                rng.random() < 0.2
            )
            given = [f"{rng.choice(['', '', '+', '++'])}{key}={rng.choice(VALUES[key])}" for key in keys]
            lines = composer.normalise([*chosen, *given, *deleted])
            ours = composed(lambda lines=lines: composer.job(master, lines))
            theirs = composed(lambda lines=lines: by_hydra(composer, lines))
            assert ours.startswith("raises") == theirs.startswith("raises"), (lines, ours, theirs)
            if not ours.startswith("raises"):
                compared += 1
                assert ours == theirs, lines
    assert compared >= 3  # or the test says nothing


@pytest.mark.slow
def test_choices_are_composed_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from research.jobs.composed_choices import ComposedChoices

    made: list[tuple[str, ...]] = []
    before = ComposedChoices._composed
    monkeypatch.setattr(ComposedChoices, "_composed", lambda self, lines: made.append(lines) or before(self, lines))
    with Composer() as composer:
        lines = composer.normalise(
            [
                "scheduler=ddim,euler,heun,lms",
                "guidance=cfg,apg,none",
                "hooks=none,shift",
                "guidance/modifiers=none,[interval,rescale]",
            ]
        )
        master = composer.master(lines)
        jobs = [composer.job(master, point) for point in points_of(composer, master, lines).found]
        for point, job in list(zip(points_of(composer, master, lines).found, jobs, strict=True))[::5]:
            assert job == by_hydra(composer, point)
    assert len(jobs) == 48
    assert len(made) == 1


def test_an_edit_changes_no_later_job(tmp_path: Path) -> None:
    (tmp_path / "guidance").mkdir()
    file = tmp_path / "guidance" / "mine.yaml"
    file.write_text("_target_: research.guidance.CFG\nscale: 2\n")
    with Composer(str(tmp_path)) as composer:
        master = composer.master([])
        first = composer.job(master, ["guidance=mine", "scheduler=ddim"])
        file.write_text("_target_: research.guidance.CFG\nscale: 3\n")
        second = composer.job(master, ["guidance=mine", "scheduler=euler"])
    assert first["guidance"]["scale"] == second["guidance"]["scale"] == 2


def test_a_model_of_ones_own_has_every_key_and_no_path() -> None:
    """`custom` asks for its path: merged over `emoji`, it would silently be `emoji`."""
    custom, emoji = (OmegaConf.load(CONF / "model" / f"{name}.yaml") for name in ("custom", "emoji"))
    del custom["defaults"]
    assert OmegaConf.is_missing(custom, "path")
    assert {key: custom[key] for key in emoji if key != "path"} == {key: emoji[key] for key in emoji if key != "path"}
    assert set(custom) == set(emoji)

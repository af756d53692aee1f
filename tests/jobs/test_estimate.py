"""The evaluations that a plan tells are those that jobs then make."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from research.jobs.compose import Composer
from research.jobs.estimate import estimate
from research.jobs.job import Job
from research.jobs.own_scheduler import strength_rule
from research.jobs.planning import plan
from research.jobs.run_job import run_job
from research.sampling import kept_steps
from research.solvers import SchedulerSpec, SolverFactory, scheduler_names

HALF = ["task=image_to_image", "task.strength=0.6"]
GUIDANCES = [
    "apg", "autoguidance", "cfg", "cfg_plus_plus", "cfg_zero", "composable", "dps_inpaint", "fdg", "feedback", "icg", "loss",
    "magnitude_aware", "nag", "none", "pag", "perp_neg", "pladis", "rectified_cfg", "sag", "seg", "slg", "smc_cfg", "swg",
    "tcfg", "tpg", "tsg",
]  # fmt: skip
SHIPPED = [name for name in scheduler_names() if not name.startswith("flow_")]  # the tiny model predicts no flow
CASES: list[list[str]] = [
    *([f"scheduler={name}"] for name in SHIPPED),
    *([f"scheduler={name}", *HALF] for name in SHIPPED),
    *([f"guidance={name}"] for name in GUIDANCES),
    *([f"guidance={name}", "guidance.scale=0"] for name in ("apg", "cfg", "cfg_plus_plus", "composable", "icg", "pag", "tsg")),
    *([f"guidance={name}", "guidance.scale=1"] for name in ("apg", "autoguidance", "cfg", "composable", "pag", "tsg")),
    *([f"scheduler={name}", "guidance=pag", "guidance/modifiers=interval"] for name in ("ddim", "heun")),
    ["guidance=pag", "guidance/modifiers=interval", "guidance.modifiers.interval.outside=base"],
    ["guidance/modifiers=schedule", "guidance.modifiers.schedule.kind=triangle"],
    ["guidance=pag", "guidance/modifiers=schedule"],
    ["guidance/modifiers=schedule", "guidance.modifiers.schedule.values=[1,4,0,2]"],
    ["guidance/modifiers=[schedule,interval]"],
    ["guidance/modifiers=[schedule,higs,momentum,tsr,epsilon_scaling,mimic_threshold]"],
    ["guidance/modifiers=[interval,schedule,rescale]"],
    ["hooks=repaint", "hooks.repaint.jump_length=2", "hooks.repaint.jump_n_sample=3"],
    ["hooks=restart", "hooks.restart.sigma=null", "hooks.restart.steps=[0.2,0.7]"],
    ["guidance=cfg_zero", "guidance.zero_steps=2", "guidance/modifiers=[schedule,rescale]"],
    ["guidance=pag", "guidance.base={_target_:research.guidance.CFGZero,scale:3}"],
    ["hooks=feature_cache"],
    ["task=inversion"],
    ["task=inversion", "task.reconstruct=false"],
    ["task=inversion", "guidance/modifiers=[interval,schedule]"],
    ["task=inversion", "guidance=cfg_zero", "guidance.zero_steps=2"],
    ["task=interpolation", "task.frames=3"],
    ["runtime=parity", "guidance.scale=0.5"],
    ["scheduler=pndm", "scheduler.options.skip_prk_steps=false"],
]  # fmt: skip


@pytest.fixture(scope="module")
def planned() -> Iterator[Callable[..., Job]]:
    """The job of overrides, neither scored nor mirrored."""
    with Composer() as composer:
        master = composer.master([])

        def planned(*lines: str) -> Job:
            [job] = plan(composer, master, [composer.normalise(["tracker=none", "metrics=none", *lines])])
            return job

        yield planned


@pytest.mark.slow
def test_estimates_are_what_jobs_measure(tiny_sd: Path, tmp_path: Path) -> None:
    base = [
        f"model.path={tiny_sd}",
        "tracker=none",
        "metrics=none",
        "steps=5",
        "prompts=[fox]",
        f"output_dir={tmp_path}",
    ]
    logging.getLogger("research").setLevel(logging.ERROR)
    wrong, guessed = {}, []
    with Composer() as composer:
        master = composer.master([])
        for case in CASES:
            [job] = plan(composer, master, [composer.normalise([*base, "runtime.threads=1", *case])])
            told, result = estimate(job.config), run_job(job)
            assert result.done, (case, result.error)
            if told.nfe != result.nfe:
                wrong[" ".join(case)] = told.nfe, result.nfe
            guessed += [] if told.exact else [" ".join(case)]
    assert not wrong, "estimated, measured"
    # in which step Restart goes back up, and whether, is a matter of noise levels
    restart = ["scheduler=restart", " ".join(["scheduler=restart", *HALF])]
    assert guessed == [*restart, "scheduler=pndm scheduler.options.skip_prk_steps=false"]


@pytest.mark.parametrize(
    "lines",
    [
        ["guidance/modifiers=interval", "guidance.modifiers.interval.steps=null", "guidance.modifiers.interval.sigma=[1,5]"],
        ["hooks=restart"],
        ["guidance=characteristic"],
        ["scheduler=custom", "scheduler.class_name=ScoreSdeVeScheduler"],
    ],
)  # fmt: skip
def test_what_only_the_libraries_know_is_a_guess(planned: Callable[..., Job], lines: list[str]) -> None:
    assert str(estimate(planned(*lines).config)).startswith("~")


def test_a_grid_that_ends_above_zero_has_two_evaluations_in_its_last_step_too(planned: Callable[..., Job]) -> None:
    lines = ["scheduler=heun", "steps=5", "guidance=none", "sigmas=karras"]
    counts = [estimate(planned(*lines, f"sigmas.end={end}").config) for end in ("zero", "smallest")]
    assert [count.nfe for count in counts] == [9, 10]


@pytest.mark.parametrize("name", ["ddim_trailing", "heun", "dpm2", "dpmpp_2m"])
@pytest.mark.parametrize("parity", [True, False])
def test_the_step_too_many_of_trailing_spacing_is_counted_where_it_is_made(
    planned: Callable[..., Job], name: str, parity: bool
) -> None:
    found = []
    for steps in (60, 61):
        lines = [f"scheduler={name}", f"steps={steps}", "guidance=none", f"runtime.parity={str(parity).lower()}"]
        spaced = [] if name == "ddim_trailing" else ["+scheduler.options.timestep_spacing=trailing"]
        config = planned(*lines, *spaced).config
        scheduler = config["scheduler"]
        spec = SchedulerSpec(name, scheduler["class_name"], scheduler["options"])
        base = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "clip_sample": False}
        solver = SolverFactory(spec, None, base, parity=parity)()
        found.append((estimate(config).nfe, len(solver.timeline(steps))))
    assert all(told == made for told, made in found), found


@pytest.mark.parametrize(
    ("pipeline", "scheduler", "task", "kept"),
    [
        ("StableDiffusionPipeline", "DDIMScheduler", "ImageToImage", 2),
        ("StableDiffusion3Pipeline", "FlowMatchEulerDiscreteScheduler", "Inpaint", 3),
        ("SanaSprintPipeline", "SCMScheduler", "ImageToImage", 3),
        ("LatentConsistencyModelPipeline", "LCMScheduler", "ImageToImage", 5),
        ("LatentConsistencyModelPipeline", "LCMScheduler", "Inpaint", 2),
    ],
)
def test_with_parity_a_strength_keeps_what_the_pipeline_keeps(
    tmp_path: Path, pipeline: str, scheduler: str, task: str, kept: int
) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": scheduler}))
    config = {
        "model": {"path": str(tmp_path)},
        "task": {"_target_": f"research.tasks.{task}"},
        "runtime": {"parity": True},
    }
    rule = strength_rule(config)
    assert rule is not None
    assert kept_steps(5, 0.5, **rule) == kept

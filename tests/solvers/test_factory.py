"""Schedulers by name, class name, dotted path and object: fresh each time, options checked."""

from __future__ import annotations

import diffusers
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from support.scheduler_kinds import OWN, upstream_names
from support.tiny_models import text_scheduler

from research import LoopSampler, config_dir
from research.errors import ConfigError, SamplingError
from research.sampling import Guided, NoiseSource, Prediction
from research.solvers import SchedulerSpec, SolverFactory, resolve, scheduler_names
from research.tasks import TextToImage

CONFIG = dict(text_scheduler().config)
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}


class Halving(DDIMScheduler):
    """A scheduler of one's own, found by its dotted path."""

    def step(self, model_output, timestep, sample, strength_of_mine=0.5, return_dict=True, **kwargs):
        out = super().step(model_output, timestep, sample, return_dict=False)
        return (strength_of_mine * out[0], *out[1:])


def refusal(scheduler, options=None, base=CONFIG) -> str:
    with pytest.raises(ConfigError) as caught:
        SolverFactory(scheduler, options, base)
    message = str(caught.value)
    assert message.startswith("scheduler")
    return message


def test_the_names_are_the_files():
    files = {file.stem for file in (config_dir() / "scheduler").glob("*.yaml")} - {"custom"}
    assert set(scheduler_names()) == files
    for name in files:
        entry = yaml.safe_load((config_dir() / "scheduler" / f"{name}.yaml").read_text())
        assert entry["name"] == name
        assert name in OWN or name == "model" or hasattr(diffusers, entry["class_name"])


@pytest.mark.parametrize("name", [n for n in upstream_names() if not n.startswith("flow")])
@pytest.mark.spread(6)
def test_a_short_name_is_its_class_with_its_options_on_the_models_config(name):
    spec = resolve(name)
    for parity in (False, True):
        scheduler = SolverFactory(name, None, CONFIG, parity=parity)().scheduler
        assert type(scheduler).__name__ == spec.class_name
        assert scheduler.config.beta_start == 0.00085
        assert scheduler.config.prediction_type == "epsilon"
        assert {k: scheduler.config[k] for k in spec.options} == dict(spec.options)


@pytest.mark.parametrize("name", ["flow_euler", "flow_heun"])
def test_flow_schedulers_for_flow_models(name):
    solver = SolverFactory(name, None, FLOW)()
    timeline = solver.timeline(4)
    assert solver.kind == "flow"
    assert {f"predicts:{solver.kind}"} <= solver.supports
    for stage in timeline:
        assert stage.signal == pytest.approx(1 - stage.noise, abs=1e-5)


def test_each_solver_is_fresh():
    factory = SolverFactory("dpmpp_2m", {"thresholding": True}, CONFIG)
    first = factory()
    noise = NoiseSource([0])
    x = torch.ones(1, 1, 2, 2)
    for stage in first.timeline(3):
        x = first.step(Guided(Prediction(x, "epsilon")), x, stage, noise).x
    second = factory()
    assert second.scheduler is not first.scheduler
    assert second.scheduler.model_outputs == [None, None]
    assert second.scheduler.num_inference_steps is None


def test_a_base_config_is_copied():
    base = dict(CONFIG)
    factory = SolverFactory("ddim", None, base)
    base["beta_start"] = 0.5
    assert factory().scheduler.config.beta_start == 0.00085


def test_an_object_keeps_its_own_config():
    given = EulerDiscreteScheduler(beta_start=0.002, use_karras_sigmas=True)
    solver = SolverFactory(given, {"timestep_spacing": "trailing"}, CONFIG)()
    assert solver.scheduler is not given
    assert solver.scheduler.config.beta_start == 0.002
    assert solver.scheduler.config.use_karras_sigmas
    assert solver.scheduler.config.timestep_spacing == "trailing"
    assert given.config.timestep_spacing == "linspace"
    assert solver.name == "EulerDiscreteScheduler"


@pytest.mark.parametrize("parity", [False, True])
def test_a_class_of_ones_own(sd, parity):
    path = f"{Halving.__module__}.Halving"
    sampler = LoopSampler(sd, scheduler=path, scheduler_options={"strength_of_mine": 0.25}, parity=parity)
    found = sampler.sample(TextToImage("a"), seeds=[1], steps=1).latents
    plain = LoopSampler(sd, scheduler="ddim", parity=parity).sample(TextToImage("a"), seeds=[1], steps=1).latents
    assert torch.allclose(found, 0.25 * plain, rtol=1e-4)


@pytest.mark.slow
def test_every_class_of_diffusers_either_works_or_says_why(sd):
    """A class added tomorrow is driven by its name: no list of classes is kept here."""
    outcomes = {}
    for name in sorted(n for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith("Flax")):
        try:
            result = LoopSampler(sd, scheduler=name).sample(TextToImage("a"), seeds=[1], steps=4)
        except ConfigError as error:
            outcomes[name] = str(error)
        except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError, SamplingError):
            outcomes[name] = "cannot be driven by a noise-predicting model"
        else:
            outcomes[name] = "works"
            assert result.latents.shape == (1, 4, 8, 8)
            assert result.nfe >= 4
    refused = {outcome for outcome in outcomes.values() if ":" in outcome}
    assert all(outcome.startswith(("scheduler", "steps")) for outcome in refused)
    works = {name for name, outcome in outcomes.items() if outcome == "works"}
    ours = {resolve(name).class_name for name in upstream_names() if not name.startswith("flow")}
    assert ours <= works
    assert {"DDIMParallelScheduler", "DDPMParallelScheduler", "TCDScheduler", "IPNDMScheduler"} <= works
    assert {"SASolverScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"} <= works


# --- refusals


@pytest.mark.parametrize(
    ("name", "meant"), [("dim", "ddim"), ("dpm_2m", "dpmpp_2m"), ("Euler", "euler"), ("unipcc", "unipc")]
)
def test_an_unknown_short_name_suggests_the_nearest(name, meant):
    message = refusal(name)
    assert repr(name) in message
    assert f"Did you mean '{meant}'?" in message


def test_an_unknown_class_suggests_the_nearest():
    assert "Did you mean 'EulerDiscreteScheduler'?" in refusal("EulerDiscretScheduler")


@pytest.mark.parametrize("path", ["no.such.module.Thing", "diffusers.NoSuchScheduler", "torch.nn.Linear", "os.path"])
def test_a_dotted_path_that_is_no_scheduler(path):
    assert path.rpartition(".")[2] in refusal(path)


@pytest.mark.parametrize("scheduler", [None, 3, object(), DDIMScheduler, ["ddim"], {}])
def test_what_is_no_scheduler(scheduler):
    assert "accepted is" in refusal(scheduler).lower()


def test_options_are_checked_by_name():
    message = refusal("ddim", {"etaa": 1})
    assert "'etaa'" in message
    assert "Did you mean 'eta'?" in message
    assert "clip_sample" in message
    for loops_own in ("generator", "sample", "timestep", "model_output", "self"):
        assert repr(loops_own) in refusal("ddim", {loops_own: 1})


def test_options_of_step_and_of_construction_are_told_apart():
    factory = SolverFactory("ddim", {"eta": 0.5, "timestep_spacing": "trailing"}, CONFIG)
    assert factory.step_options == {"eta": 0.5}
    assert factory().scheduler.config.timestep_spacing == "trailing"


def test_options_that_the_class_refuses():
    assert "spiral" in refusal("ddim", {"beta_schedule": "spiral"})
    assert "prediction_type" in refusal("ddim", {"prediction_type": "smell"})


def test_flow_and_noise_do_not_mix():
    assert "predict" in refusal("flow_euler")
    assert "predict" in refusal("ConsistencyDecoderScheduler", None, FLOW) or "predict" in refusal(
        "EDMEulerScheduler", None, FLOW
    )


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpmpp_2m", "pndm", "unipc", "ddpm"])
def test_more_steps_than_timesteps(name):
    for parity in (False, True):
        with pytest.raises(ConfigError, match=r"steps: found 1001; .* 1 to 1000"):
            SolverFactory(name, None, CONFIG, parity=parity)().timeline(1001)


def test_all_timesteps_are_accepted():
    assert len(SolverFactory("ddim", {"timestep_spacing": "trailing"}, CONFIG)().timeline(1000)) == 1000
    assert len(SolverFactory("ddim", None, CONFIG)().timeline(999)) == 999


@pytest.mark.parametrize("parity", [False, True])
def test_an_offset_that_leads_beyond_the_last_timestep(parity):
    """Stable Diffusion's own config at 1000 steps: an IndexError in diffusers."""
    with pytest.raises(ConfigError, match=r"steps: scheduler ddim cannot make 1000 steps"):
        SolverFactory("ddim", None, CONFIG, parity=parity)().timeline(1000)


def test_a_count_that_the_class_cannot_make():
    with pytest.raises(ConfigError, match=r"steps: scheduler lcm cannot make 80 steps"):
        SolverFactory("lcm", None, CONFIG)().timeline(80)


def test_a_spec_is_taken_as_it_is():
    spec = SchedulerSpec("mine", "DDIMScheduler", {"timestep_spacing": "trailing"})
    solver = SolverFactory(spec, {"eta": 0.3}, CONFIG)()
    assert solver.solver.eta == 0.3
    assert solver.name == "mine"
    assert solver.scheduler.config.timestep_spacing == "trailing"


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_levels_that_are_asked_for_are_had_on_a_flow_model_too(name):
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    spaced = {"use_beta_sigmas": True}
    found = [
        [level.sigma for level in SolverFactory(*of, flow).levels(8)] for of in ((name, spaced), ("flow_euler", spaced))
    ]
    assert found[0] == found[1]
    assert found[0] != [level.sigma for level in SolverFactory(name, {}, flow).levels(8)]

"""Classes of diffusers that are called schedulers and sample nothing, or not this model: refused before a run."""

from __future__ import annotations

import pytest

from research.errors import ConfigError
from research.solvers.build import SolverFactory

EPSILON = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("RePaintScheduler", "its step asks for original_image, mask besides"),
        ("KarrasVeScheduler", "its step asks for sigma_hat, sigma_prev, sample_hat besides"),
        ("CogVideoXDPMScheduler", "its step asks for old_pred_original_sample, timestep_back besides"),
        ("VQDiffusionScheduler", "does not accept its options"),
    ],
)
def test_no_samplers(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        SolverFactory(name, None, EPSILON)
    assert words in str(error.value)


def test_a_class_that_takes_everything_for_noise() -> None:
    v = {**EPSILON, "prediction_type": "v_prediction"}
    assert SolverFactory("IPNDMScheduler", None, EPSILON).name
    with pytest.raises(ConfigError, match="takes every output for noise"):
        SolverFactory("IPNDMScheduler", None, v)


def test_libraries_keep_their_messages_to_themselves(capfd: pytest.CaptureFixture[str]) -> None:
    options = {"use_karras_sigmas": True, "final_sigmas_type": "zero", "lower_order_final": False}
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "strange": 1}
    SolverFactory("DPMSolverMultistepScheduler", options, EPSILON)
    SolverFactory("dpmpp_2m", None, flow)
    assert capfd.readouterr().err == ""

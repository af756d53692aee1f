"""The core: one denoising loop, and the interfaces of everything that plugs into it. Imports torch and nothing heavier."""

from research.sampling.checks import check_offers, check_plugs
from research.sampling.hooks import Hook, check_claims
from research.sampling.interfaces import (
    Branch,
    Condition,
    Denoiser,
    Guidance,
    Guided,
    Model,
    Patch,
    Solver,
    StepOutput,
    Task,
)
from research.sampling.loop import LoopSampler
from research.sampling.noise import NoiseSource
from research.sampling.prediction import KINDS, Kind, Prediction, convert, to_epsilon, to_flow, to_v, to_x0
from research.sampling.result import Sampler, SampleResult
from research.sampling.state import Run, StepState
from research.sampling.timeline import Stage, Timeline, kept_steps

__all__ = [
    "KINDS",
    "Branch",
    "Condition",
    "Denoiser",
    "Guidance",
    "Guided",
    "Hook",
    "Kind",
    "LoopSampler",
    "Model",
    "NoiseSource",
    "Patch",
    "Prediction",
    "Run",
    "SampleResult",
    "Sampler",
    "Solver",
    "Stage",
    "StepOutput",
    "StepState",
    "Task",
    "Timeline",
    "check_claims",
    "check_offers",
    "check_plugs",
    "convert",
    "kept_steps",
    "to_epsilon",
    "to_flow",
    "to_v",
    "to_x0",
]

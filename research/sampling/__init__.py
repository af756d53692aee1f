"""The core: one denoising loop, and the interfaces of everything that plugs into it. Imports torch and nothing heavier."""

from research.sampling.hooks import Hook
from research.sampling.loop import LoopSampler, check_offers
from research.sampling.noise import NoiseSource
from research.sampling.plugs import (
    Branch,
    Condition,
    Denoiser,
    Guidance,
    Guided,
    Model,
    Solver,
    StepOutput,
    Task,
)
from research.sampling.prediction import KINDS, Kind, Prediction, convert, to_epsilon, to_flow, to_v, to_x0
from research.sampling.run import Run, StepState
from research.sampling.sampler import Sampler, SampleResult
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
    "check_offers",
    "convert",
    "kept_steps",
    "to_epsilon",
    "to_flow",
    "to_v",
    "to_x0",
]

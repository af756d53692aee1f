"""The core: one denoising loop, and the interfaces of everything that plugs into it. Imports torch and nothing heavier."""

from research.sampling.fit import check_claims, check_negative_prompt, check_offers, check_plugs
from research.sampling.interfaces import (
    Batch,
    Branch,
    Condition,
    Denoiser,
    Guidance,
    Guided,
    Hook,
    Model,
    ModelFacts,
    Patch,
    Run,
    Solver,
    StepOutput,
    StepState,
    Task,
)
from research.sampling.loop import LoopSampler
from research.sampling.noise import NoiseSource
from research.sampling.prediction import KINDS, Kind, Prediction, convert, to_epsilon, to_flow, to_v, to_x0
from research.sampling.result import Sampler, SampleResult
from research.sampling.timeline import Stage, Timeline, kept_steps

__all__ = [
    "KINDS",
    "Batch",
    "Branch",
    "Condition",
    "Denoiser",
    "Guidance",
    "Guided",
    "Hook",
    "Kind",
    "LoopSampler",
    "Model",
    "ModelFacts",
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
    "check_negative_prompt",
    "check_offers",
    "check_plugs",
    "convert",
    "kept_steps",
    "to_epsilon",
    "to_flow",
    "to_v",
    "to_x0",
]

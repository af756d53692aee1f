"""Grids of noise levels, chosen apart from the solver: each takes what a model was trained on and a number of steps."""

from research.sigmas.flow import FlowShift
from research.sigmas.given import Between, File, Given, as_schedule
from research.sigmas.over_sigma import EDM, Exponential, Karras, KLOptimal, LinearQuadratic, Polyexponential
from research.sigmas.over_snr import Cosine, Laplace, LogSnrUniform
from research.sigmas.over_timesteps import Beta, DDIMUniform, Normal, SgmUniform, Simple
from research.sigmas.published import AYS
from research.solvers.levels import Schedule

__all__ = [
    "AYS",
    "EDM",
    "Beta",
    "Between",
    "Cosine",
    "DDIMUniform",
    "Exponential",
    "File",
    "FlowShift",
    "Given",
    "KLOptimal",
    "Karras",
    "Laplace",
    "LinearQuadratic",
    "LogSnrUniform",
    "Normal",
    "Polyexponential",
    "Schedule",
    "SgmUniform",
    "Simple",
    "as_schedule",
]

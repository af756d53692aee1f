"""Which of diffusers' classes a native solver stands for."""

from __future__ import annotations

from research.solvers.linear import LinearSolver
from research.solvers.native.ddim import DDIM
from research.solvers.native.ddpm import DDPM
from research.solvers.native.deis import DEIS
from research.solvers.native.dpm2 import DPM2, DPM2Ancestral
from research.solvers.native.dpmpp import DPMpp
from research.solvers.native.dpmpp_sde import DPMppSDE
from research.solvers.native.dpmpp_singlestep import DPMppSinglestep
from research.solvers.native.euler import Euler
from research.solvers.native.euler_a import EulerAncestral
from research.solvers.native.heun import Heun
from research.solvers.native.lcm import LCM
from research.solvers.native.lms import LMS
from research.solvers.native.pndm import PNDM
from research.solvers.native.sa_solver import SASolver
from research.solvers.native.scm import SCM
from research.solvers.native.tcd import TCD
from research.solvers.native.unipc import UniPC

COUNTERPARTS: dict[str, type[LinearSolver]] = {
    "DDIMScheduler": DDIM,
    "DDPMScheduler": DDPM,
    "DEISMultistepScheduler": DEIS,
    "DPMSolverMultistepScheduler": DPMpp,
    "DPMSolverSDEScheduler": DPMppSDE,
    "DPMSolverSinglestepScheduler": DPMppSinglestep,
    "EulerAncestralDiscreteScheduler": EulerAncestral,
    "EulerDiscreteScheduler": Euler,
    "FlowMatchEulerDiscreteScheduler": Euler,
    "FlowMatchHeunDiscreteScheduler": Heun,
    "HeunDiscreteScheduler": Heun,
    "KDPM2AncestralDiscreteScheduler": DPM2Ancestral,
    "KDPM2DiscreteScheduler": DPM2,
    "LCMScheduler": LCM,
    "LMSDiscreteScheduler": LMS,
    "PNDMScheduler": PNDM,
    "SASolverScheduler": SASolver,
    "SCMScheduler": SCM,
    "TCDScheduler": TCD,
    "UniPCMultistepScheduler": UniPC,
}

"""Ways to combine predictions, one file a method, and modifiers that wrap any of them."""

from research.guidance.apg import APG
from research.guidance.autoguidance import Autoguidance
from research.guidance.cfg import CFG
from research.guidance.cfg_plus_plus import CFGPlusPlus
from research.guidance.cfg_zero import CFGZero
from research.guidance.classifier import ClassifierGuidance
from research.guidance.composable import Composable
from research.guidance.dps import DPS
from research.guidance.fdg import FDG
from research.guidance.icg import ICG
from research.guidance.interval import Interval
from research.guidance.loss import LossGuidance
from research.guidance.magnitude_aware import MagnitudeAware
from research.guidance.nag import NAG
from research.guidance.none import NoGuidance
from research.guidance.pag import PAG
from research.guidance.perp_neg import PerpNeg
from research.guidance.renorm import Renorm
from research.guidance.rescale import Rescale
from research.guidance.sag import SAG
from research.guidance.scales import Scales
from research.guidance.schedule import Schedule
from research.guidance.seg import SEG
from research.guidance.slg import SLG
from research.guidance.tcfg import TCFG
from research.guidance.threshold import Threshold
from research.guidance.tsg import TSG
from research.sampling.interfaces import Guidance

__all__ = [
    "APG",
    "CFG",
    "DPS",
    "FDG",
    "ICG",
    "NAG",
    "PAG",
    "SAG",
    "SEG",
    "SLG",
    "TCFG",
    "TSG",
    "Autoguidance",
    "CFGPlusPlus",
    "CFGZero",
    "ClassifierGuidance",
    "Composable",
    "Guidance",
    "Interval",
    "LossGuidance",
    "MagnitudeAware",
    "NoGuidance",
    "PerpNeg",
    "Renorm",
    "Rescale",
    "Scales",
    "Schedule",
    "Threshold",
]

"""Ways to combine predictions, one file a method, and modifiers that wrap any of them."""

from research.guidance.apg import APG
from research.guidance.autoguidance import Autoguidance
from research.guidance.cfg import CFG
from research.guidance.cfg_plus_plus import CFGPlusPlus
from research.guidance.cfg_zero import CFGZero
from research.guidance.characteristic import CharacteristicGuidance
from research.guidance.classifier import ClassifierGuidance
from research.guidance.composable import Composable
from research.guidance.dps import DPS
from research.guidance.fdg import FDG
from research.guidance.feedback import FeedbackGuidance
from research.guidance.history import HiGS, Momentum
from research.guidance.icg import ICG
from research.guidance.interval import Interval
from research.guidance.loss import LossGuidance
from research.guidance.magnitude_aware import MagnitudeAware
from research.guidance.mimic_threshold import MimicThreshold
from research.guidance.nag import NAG
from research.guidance.noise_scaling import TSR, EpsilonScaling
from research.guidance.none import NoGuidance
from research.guidance.pag import PAG
from research.guidance.perp_neg import PerpNeg
from research.guidance.pladis import PLADIS
from research.guidance.rectified_cfg import RectifiedCFGPlusPlus
from research.guidance.renorm import Renorm
from research.guidance.rescale import Rescale
from research.guidance.sag import SAG
from research.guidance.scales import Scales
from research.guidance.schedule import Schedule
from research.guidance.seg import SEG
from research.guidance.slg import SLG
from research.guidance.smc_cfg import SMCCFG
from research.guidance.swg import SWG
from research.guidance.tcfg import TCFG
from research.guidance.threshold import Threshold
from research.guidance.tpg import TPG
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
    "PLADIS",
    "SAG",
    "SEG",
    "SLG",
    "SMCCFG",
    "SWG",
    "TCFG",
    "TPG",
    "TSG",
    "TSR",
    "Autoguidance",
    "CFGPlusPlus",
    "CFGZero",
    "CharacteristicGuidance",
    "ClassifierGuidance",
    "Composable",
    "EpsilonScaling",
    "FeedbackGuidance",
    "Guidance",
    "HiGS",
    "Interval",
    "LossGuidance",
    "MagnitudeAware",
    "MimicThreshold",
    "Momentum",
    "NoGuidance",
    "PerpNeg",
    "RectifiedCFGPlusPlus",
    "Renorm",
    "Rescale",
    "Scales",
    "Schedule",
    "Threshold",
]

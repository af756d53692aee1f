"""Samplers above the loop: they make several candidates of an image, or several images together, and count what all of it costs.

Names are imported on first use: naming a sampler in a config costs no torch import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names

if TYPE_CHECKING:
    from research.samplers.best_of_n import BestOfN as BestOfN
    from research.samplers.fk_steering import FKSteering as FKSteering
    from research.samplers.noise_optimisation import NoiseOptimisation as NoiseOptimisation
    from research.samplers.particle_guidance import ParticleGuidance as ParticleGuidance
    from research.samplers.scores import FunctionScore as FunctionScore
    from research.samplers.scores import MetricScore as MetricScore
    from research.samplers.scores import Score as Score
    from research.samplers.search import Found as Found
    from research.samplers.search import Group as Group
    from research.samplers.search import Search as Search
    from research.samplers.search import candidate_seed as candidate_seed
    from research.samplers.search_over_paths import SearchOverPaths as SearchOverPaths
    from research.samplers.smc import TwistedSMC as TwistedSMC
    from research.samplers.zero_order import ZeroOrder as ZeroOrder

_LAZY = {
    "BestOfN": "research.samplers.best_of_n",
    "FKSteering": "research.samplers.fk_steering",
    "Found": "research.samplers.search",
    "FunctionScore": "research.samplers.scores",
    "Group": "research.samplers.search",
    "MetricScore": "research.samplers.scores",
    "NoiseOptimisation": "research.samplers.noise_optimisation",
    "ParticleGuidance": "research.samplers.particle_guidance",
    "Score": "research.samplers.scores",
    "Search": "research.samplers.search",
    "SearchOverPaths": "research.samplers.search_over_paths",
    "TwistedSMC": "research.samplers.smc",
    "ZeroOrder": "research.samplers.zero_order",
    "candidate_seed": "research.samplers.search",
}
__all__ = [
    "BestOfN",
    "FKSteering",
    "Found",
    "FunctionScore",
    "Group",
    "MetricScore",
    "NoiseOptimisation",
    "ParticleGuidance",
    "Score",
    "Search",
    "SearchOverPaths",
    "TwistedSMC",
    "ZeroOrder",
    "candidate_seed",
]

__getattr__ = lazy_names(__name__, _LAZY)

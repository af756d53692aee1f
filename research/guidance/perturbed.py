"""What the methods share that push away from a perturbed prediction of the same model: PAG, SEG, SLG, SAG, autoguidance."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from research.checks import check_number
from research.errors import ConfigError
from research.guidance.layers import checked_layers, matching
from research.guidance.wrapping import Wrapping
from research.sampling.interfaces import Batch, Branch, Guidance, Guided, ModelFacts, Patch, Scale, Solver, StepState
from research.sampling.prediction import Prediction, convert


class Perturbed(Wrapping):
    """Adds ``(scale - neutral) * (plain - perturbed)`` to what another guidance gives, with one more evaluation a stage.

    ``plain`` is the conditional prediction of the base (its first one, should it have no conditional one). The difference is
    taken in the space of the base's result; it is the same in all of them.
    """

    neutral = 0.0
    branch = "perturbed"

    scale_range = (0.0, math.inf)

    def __init__(self, scale: float, base: Guidance | None = None):
        super().__init__(base)
        self.scale = check_number("guidance.scale", scale, least=0)
        self._pair: tuple[str, str] | None = None

    def pushes_each_alone(self) -> bool:
        """For `vectorises`: it pushes, and what it adds to treats each image by itself."""
        base = self.guidance
        return self.scale != self.neutral and (type(base).combine is Guidance.combine or base.vectorises())

    def perturb(self, state: StepState, plain: Branch) -> Branch:
        """The perturbed branch to a plain one; its name is set by the caller."""
        raise NotImplementedError

    def branches(self, state: StepState) -> Sequence[Branch]:
        asked = list(self.guidance.branches(state))
        self._pair = None
        if state.scale_of(self) == self.neutral or self.stands_still(state):
            return asked
        plain = plain_branch(asked)
        name = free_name(self.branch, [branch.name for branch in asked])
        self._pair = plain.name, name
        return [*asked, replace(self.perturb(state, plain), name=name)]

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        guided = self.guidance.combine(state, predictions)
        if self._pair is None:
            return guided
        plain, perturbed = (predictions[name] for name in self._pair)
        return pushed(state, guided, state.scale_of(self) - self.neutral, plain, perturbed)


class PatchedLayers(Perturbed):
    """The perturbed branch is the plain one with a patch of some of the network's layers.

    Args:
        scale: strength of the push, from 0; 0 is the base alone and costs nothing.
        layers: which layers: patterns, see `research.guidance.layers.matching`.
        base: the guidance whose result it adds to, by default none.

    Attributes:
        chosen: names of the layers of the model that is sampled from, once that is known.

    Raises:
        ConfigError: the scale is no finite number from 0, or the layers are no patterns; on `check`, that the model has no such
            layers.
    """

    own_requires = frozenset({"attention"})
    kind = "self-attention"  # of layers
    why = ""  # a network may have no layer of the kind

    def __init__(self, scale: float, layers: str | Sequence[str] = "mid", base: Guidance | None = None):
        super().__init__(scale, base)
        self.layers = checked_layers(layers)
        self.chosen: Sequence[str] = self.layers

    def check(self, model: ModelFacts, solver: Solver) -> None:
        super().check(model, solver)
        self.chosen = self._choose(model)

    def start(self, run: Batch) -> None:
        super().start(run)
        self.chosen = self._choose(run.model)

    def _choose(self, model: ModelFacts) -> list[str]:
        """Names of the layers that are patched."""
        names = model.layers(self.kind)
        if not names and self.why:
            raise ConfigError(f"guidance: {type(self).__name__} {self.why}; {model.name} has no such layer.")
        return matching(self.layers, names, kind=self.kind, middle=model.middle_layers)

    def patch(self, state: StepState) -> Patch:
        """The patch for this stage."""
        raise NotImplementedError

    def perturb(self, state: StepState, plain: Branch) -> Branch:
        return replace(plain, patches=(*plain.patches, self.patch(state)))


class LayerPatch:
    """A patch of layers of a kind; see `research.sampling.interfaces.Patch`."""

    kind = "self-attention"

    def __init__(self, layers: Sequence[str]):
        self.layers: Sequence[str] = tuple(layers)

    def __call__(self, layer: Any, forward: Any, hidden: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


def plain_branch(asked: Sequence[Branch], *preferred: str) -> Branch:
    """The branch to perturb: the first of the preferred names, "cond", the first without patches, the first."""
    by_name = {branch.name: branch for branch in asked}
    for name in (*preferred, "cond"):
        if name in by_name:
            return by_name[name]
    return next((branch for branch in asked if not branch.patches), asked[0])


def free_name(name: str, taken: Collection[str]) -> str:
    """``name``, or with a number if it is taken already."""
    return next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(taken) + 3))) if n not in taken)


def pushed(state: StepState, guided: Guided, strength: Scale, toward: Prediction, away: Prediction) -> Guided:
    """``guided + strength * (toward - away)``, in the space of ``guided``."""
    kind = guided.prediction.kind
    good, bad = (convert(p, kind, state.x_before, state.stage).value for p in (toward, away))
    value = guided.prediction.value + strength * (good - bad)
    return replace(guided, prediction=Prediction(value, kind))

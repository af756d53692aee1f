"""FreeU: backbone features of a UNet made stronger, and those that skip it weaker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from research.checks import check_number
from research.errors import ConfigError
from research.hooks.windows import Window
from research.sampling.interfaces import Batch, Branch, Denoiser, Hook, ModelFacts, Solver
from research.sampling.prediction import Prediction
from research.sampling.timeline import Stage

_KEY = "hooks.freeu"
_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")


class FreeU(Hook):
    """Weighs what the first two blocks of a UNet's way up join (FreeU, Si et al., arXiv:2309.11497, section 3.2), at no cost.

    Half of the channels of what comes from below are multiplied by ``b``, and the lowest frequencies of what skips the deep
    blocks by ``s``, in the first block (1) and the second (2): diffusers' ``enable_freeu``, bit for bit, as its pipelines do.
    The authors' later code weighs channels by their mean besides; diffusers does not. All branches of the model are evaluated
    so.

    Args:
        b1, b2: above 0; 1 leaves features as they are. The authors have 1.5 and 1.6 for Stable Diffusion 1, 1.4 and 1.6 for 2,
            1.3 and 1.4 for XL.
        s1, s2: above 0; 1 leaves them. The authors have 0.9 and 0.2, for XL too.
        steps: the part of the user's steps in which it acts, as fractions ``lo <= hi`` from 0 to 1: step ``k`` of ``n``, counted
            from 0, is in it if ``lo <= k / n < hi``.

    Raises:
        ConfigError: a number is out of range, or the model's network is no UNet with such blocks.
    """

    claims = frozenset({"skip features"})

    def __init__(
        self, b1: float = 1.5, b2: float = 1.6, s1: float = 0.9, s2: float = 0.2, steps: Sequence[float] = (0.0, 1.0)
    ):
        given = {"b1": b1, "b2": b2, "s1": s1, "s2": s2}
        self.weights = {name: check_number(f"{_KEY}.{name}", value, above=0) for name, value in given.items()}
        self.window = Window(f"{_KEY}.steps", steps)

    def check(self, model: ModelFacts, solver: Solver) -> None:
        up = [str(kind) for kind in model.network_config.get("up_block_types") or ()]
        if not up or any(kind not in _BLOCKS for kind in up[:2]):
            found = ", ".join(up[:2]) or "none"
            raise ConfigError(
                f"{_KEY}: weighs what a UNet's blocks {' and '.join(_BLOCKS)} join; the first two of the way up of {model.name} "
                f"are: {found}."
            )

    def vectorises(self) -> bool:
        return True

    def around_model(self, run: Batch, denoiser: Denoiser) -> Denoiser:
        self.check(run.model, run.solver)
        self.window.warn_if_empty(run)
        if all(weight == 1 for weight in self.weights.values()):
            return denoiser
        return _Weighed(self, run.model.network.up_blocks, denoiser)


class _Weighed:
    """A denoiser whose network weighs features for as long as it is asked, and no longer."""

    def __init__(self, hook: FreeU, blocks: Any, denoiser: Denoiser):
        self.hook, self.blocks, self.denoiser = hook, blocks, denoiser

    def predict(self, x: Tensor, stage: Stage, branches: Sequence[Branch]) -> dict[str, Prediction]:
        if stage not in self.hook.window:
            return self.denoiser.predict(x, stage, branches)
        self._set(self.hook.weights)
        try:
            return self.denoiser.predict(x, stage, branches)
        finally:
            self._set(dict.fromkeys(self.hook.weights))

    def _set(self, weights: Mapping[str, float | None]) -> None:
        for block in self.blocks:
            for name, weight in weights.items():
                setattr(block, name, weight)

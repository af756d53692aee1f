"""A network as the denoiser of one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from research.errors import SamplingError
from research.models.compiled import counted, is_compiled
from research.models.patching import Look, Patching
from research.sampling.interfaces import Branch, Condition
from research.sampling.prediction import Kind, Prediction
from research.sampling.timeline import Stage

Evaluate = Callable[[Tensor, Tensor, Condition], Tensor]
Together = Literal["all", "plain", "none"]
_JOINED = 8


class NetworkDenoiser:
    """Evaluates the branches of a stage, in one batch where it may (unconditional first under CFG, as diffusers pipelines do).

    Args:
        network: what is evaluated: patches change its layers.
        evaluate: calls it, as ``evaluate(x, t, told)`` for latents [B, C, h, w], the time (0-d or [B]) and the conditions of
            these rows, and returns its prediction [B, C, h, w].
        kind: what it predicts.
        together: which branches go in one batch: "all", those without patches ("plain"), or "none". The last bits depend on it.
        look: has a check read a value, see `Batch.look`; at once by default.
        timings: takes the seconds of compiling a network that is compiled.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        evaluate: Evaluate,
        *,
        kind: Kind,
        together: Together = "all",
        look: Look | None = None,
        timings: dict[str, float] | None = None,
    ):
        self.network, self.together = network, together
        self.evaluate = self._counting(evaluate) if is_compiled(network) else evaluate
        self.kind: Kind = kind
        self._timings = {} if timings is None else timings
        self._patching = Patching(network, look)
        # joined conditions by those they were made of; the last few, as hooks may make new ones for every stage
        self._joined: dict[tuple[Condition, ...], Condition] = {}

    def predict(self, x: Tensor, stage: Stage, branches: Sequence[Branch]) -> dict[str, Prediction]:
        """See `research.sampling.interfaces.Denoiser`.

        Raises:
            SamplingError: no branch, two of one name, or a patch that changes nothing.
            ConfigError: a patch is for layers that the network has not.
        """
        names = {branch.name for branch in branches}
        if len(names) != len(branches) or not names:
            raise _unfit(branches)
        if len(branches) == 1 or (self.together == "all" and not any(branch.apart for branch in branches)):
            outputs = self._of_one_batch(x, stage, branches)
        else:
            found = {
                branch.name: output
                for group in self._groups(branches)
                for branch, output in zip(group, self._of_one_batch(x, stage, group), strict=True)
            }
            outputs = [found[branch.name] for branch in branches]
        if self._patching.to_compare:
            self._patching.compare(branches, outputs)
        kind = self.kind
        return {branch.name: Prediction(part, kind) for branch, part in zip(branches, outputs, strict=True)}

    def _groups(self, branches: Sequence[Branch]) -> list[list[Branch]]:
        """The branches of each batch."""
        if self.together == "none":
            return [[branch] for branch in branches]
        alone = [branch for branch in branches if branch.apart or (branch.patches and self.together == "plain")]
        joined = [branch for branch in branches if branch not in alone]
        return [*([joined] if joined else []), *([branch] for branch in alone)]

    def _of_one_batch(self, x: Tensor, stage: Stage, branches: Sequence[Branch]) -> Sequence[Tensor]:
        conditions, patched, timed = [], False, False
        for branch in branches:
            conditions.append(branch.condition)
            patched = patched or bool(branch.patches)
            timed = timed or branch.time is not None
        count = len(branches)
        told = self._told(tuple(conditions))
        inputs = torch.cat([x] * count) if count > 1 else x
        if told.channels is not None:
            inputs = torch.cat([inputs, told.channels], dim=1)
        times = _times(branches, stage.t, len(x)) if timed else stage.t
        if patched:
            with self._patching.attached(branches, len(x)):
                output = self.evaluate(inputs, times, told)
        else:
            output = self.evaluate(inputs, times, told)
        return output.split_with_sizes([x.shape[0]] * count) if count > 1 else (output,)

    def _counting(self, evaluate: Evaluate) -> Evaluate:
        """Calls of a network that is compiled, with what compiling costs told apart."""

        def call(x: Tensor, t: Tensor, told: Condition) -> Tensor:
            with counted(self.network, self._timings):
                return evaluate(x, t, told)

        return call

    def _told(self, conditions: tuple[Condition, ...]) -> Condition:
        """The conditions of a batch as one."""
        told = self._joined.get(conditions)
        if told is None:
            while len(self._joined) >= _JOINED:
                del self._joined[next(iter(self._joined))]
            told = self._joined[conditions] = Condition.joined(conditions)
        return told


def _unfit(branches: Sequence[Branch]) -> SamplingError:
    """A branch that would not be computed as asked is an error, and no silent copy of another one."""
    names = ", ".join(branch.name for branch in branches) or "none"
    return SamplingError(f"guidance: asks for the branches {names}; accepted is at least one, each of its own name.")


def _times(branches: Sequence[Branch], t: Tensor, images: int) -> Tensor:
    """What the network is told where a branch has a time of its own: [B]."""
    own = [t if branch.time is None else branch.time.to(t.device) for branch in branches]
    return torch.cat([time.reshape(-1).expand(images) for time in own])

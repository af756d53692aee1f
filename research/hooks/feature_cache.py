"""Feature caching: the deep blocks of a UNet are not computed at every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from research.checks import check_number, check_whole_number
from research.errors import ConfigError, SamplingError
from research.hooks.deep_part import DeepPart
from research.hooks.windows import Window
from research.sampling.interfaces import Batch, Branch, Denoiser, Hook, ModelFacts, Run, Solver, StepState
from research.sampling.prediction import Prediction
from research.sampling.timeline import Stage

_KEY = "hooks.feature_cache"


class FeatureCache(Hook):
    """Computes the deep blocks of a UNet at some stages, and at the others takes what they put out last.

    (DeepCache, arXiv:2312.00858, section 3.2, cut between blocks.) The outermost blocks are computed at every stage: the first
    ones of the way down, whose outputs the last ones of the way up are joined with. What lies between is computed again for
    an image

    * ``every`` stages after it last was (DeepCache's uniform schedule), or with ``power`` at as many stages that lie denser
      about the stage ``centre`` (its non-uniform schedule, appendix C), and
    * once the input of the deep part has changed by more than ``threshold`` since then, ``mean |h - h'| / mean |h'|`` (the
      measure of first-block caches, but taken for each image by itself, so that an image does not depend on its batch).

    All branches of an image are computed again together; so they are when a branch is asked for the first time, and after a
    jump back to an earlier stage. Only the rows of the batch that need it are computed. Branches of further models are
    computed in full, and so is all where guidance takes gradients. ``result.trace["feature_cache"]`` has ``evaluations`` of
    the model an image, and of these ``deep_evaluations`` with the deep part, a number an image of the first batch.

    Args:
        every: stages (model evaluations) from one computation of the deep part to the next, from 1 (always); None: as the
            threshold says.
        threshold: relative change of an image's features from 0; None: as ``every`` says. With both, whichever comes first.
        power: above 1, of the non-uniform schedule; None: the uniform one. It is lowered by 0.02 until there are as many stages,
            as in the authors' code. They take 1.2 to 1.4.
        centre: the stage, counted from 0, about which these lie.
        blocks: how many of the outermost blocks are computed at every stage, from 1 to one less than there are.
        steps: the part of the user's steps in which features are reused, as fractions ``lo <= hi`` from 0 to 1: step ``k`` of
            ``n``, counted from 0, is in it if ``lo <= k / n < hi``.

    Raises:
        ConfigError: a setting is out of range, or the model's network is no diffusers UNet with so many blocks.
        SamplingError: guidance patches a branch's layers, which needs the whole network.
    """

    claims = frozenset({"network"})

    def __init__(
        self,
        every: int | None = 3,
        threshold: float | None = None,
        blocks: int = 1,
        steps: Sequence[float] = (0.0, 1.0),
        power: float | None = None,
        centre: int = 0,
    ):
        self.power = None if power is None else check_number(f"{_KEY}.power", power, above=1)
        self.centre = check_whole_number(f"{_KEY}.centre", centre, least=0)
        if power is not None and every is None:
            raise ConfigError(f"{_KEY}.every: found null with a power; accepted is a whole number from 1.")
        if every is None and threshold is None:
            raise ConfigError(f"{_KEY}: found neither every nor threshold; accepted is one of them, or both.")
        self.every = None if every is None else check_whole_number(f"{_KEY}.every", every, least=1)
        self.threshold = None if threshold is None else check_number(f"{_KEY}.threshold", threshold, least=0)
        self.blocks = check_whole_number(f"{_KEY}.blocks", blocks, least=1)
        self.window = Window(f"{_KEY}.steps", steps)

    def check(self, model: ModelFacts, solver: Solver) -> None:
        down = list(model.network_config.get("down_block_types") or ())
        kinds = [*down, *(model.network_config.get("up_block_types") or ())]
        if not down or any(str(kind).startswith("Skip") for kind in kinds):
            raise ConfigError(
                f"{_KEY}: cannot attach to model {model.name}; accepted are those with a UNet2DConditionModel or "
                "UNet2DModel of diffusers, without skip blocks."
            )
        if self.blocks >= len(down):
            raise ConfigError(
                f"{_KEY}.blocks: found {self.blocks}; the network of {model.name} has {len(down)} blocks, accepted here is "
                f"{'1' if len(down) == 2 else f'1 to {len(down) - 1}' if len(down) > 2 else 'none'}."
            )

    def around_model(self, run: Batch, denoiser: Denoiser) -> Denoiser:
        self.check(run.model, run.solver)
        self.window.warn_if_empty(run)
        self._saved: dict[str, _Saved] = {}  # by branch
        self._clock, self._next, self._open = 0, 0, True
        self._evaluations, self._deep = 0, [0] * len(run.seeds)
        self._places: frozenset[int] | None = None
        if self.power is not None and self.every is not None:
            self._places = non_uniform(len(run.timeline), self.every, self.centre, self.power)
        self._part = DeepPart(run.model.network, self.blocks)
        run.cleanup.callback(self._release)
        return _Cached(self, denoiser)

    def pre_step(self, state: StepState) -> None:
        stage = state.stage
        if stage.index != self._next:
            self._saved.clear()
        self._clock, self._next = self._clock + 1, stage.index + 1
        self._open = stage in self.window

    def memory(self) -> dict[str, Any]:
        saved = {
            name: {"given": one.given, "deep": one.deep, "since": torch.tensor(one.since)}
            for name, one in self._saved.items()
        }
        deep = torch.tensor(self._deep)
        return {
            "saved": saved,
            "clock": [self._clock, self._next],
            "evaluations": self._evaluations,
            "deep": deep,
            "residuals": list(self._part.residuals),
        }

    def remember(self, memory: Mapping[str, Any]) -> None:
        self._saved = {}
        for name, kept in memory["saved"].items():
            one = self._saved[name] = _Saved(len(kept["since"]))
            one.given, one.deep, one.since = kept["given"], kept["deep"], kept["since"].tolist()
        self._part.residuals = list(memory["residuals"])
        self._clock, self._next = memory["clock"]
        self._evaluations, self._deep = memory["evaluations"], memory["deep"].tolist()

    def on_end(self, run: Run) -> None:
        run.trace["feature_cache"] = {"evaluations": self._evaluations, "deep_evaluations": self._deep}

    def predict(self, denoiser: Denoiser, x: Tensor, stage: Stage, branches: Sequence[Branch]) -> dict[str, Prediction]:
        """What the denoiser predicts, with the deep part taken from where it was saved."""
        mine = [branch for branch in branches if branch.model == "main"]
        self._evaluations += len(mine)
        if patched := [branch.name for branch in mine if branch.patches]:
            raise SamplingError(
                f"{_KEY}: the guidance patches layers for its branch '{patched[0]}', which needs the whole network at every "
                "stage; accepted are guidances without patches."
            )
        if torch.is_grad_enabled() or not mine:
            self._deep = [count + len(mine) for count in self._deep]
            return denoiser.predict(x, stage, branches)
        others = [branch for branch in branches if branch.model != "main"]
        names = [branch.name for branch in mine]
        with self._part.used(partial(self._rows, names, len(x)), partial(self._all_rows, names)):
            found = denoiser.predict(x, stage, mine)
        if others:
            found |= denoiser.predict(x, stage, others)
        return {branch.name: found[branch.name] for branch in branches}

    # -- what the deep part asks

    def _rows(self, names: Sequence[str], images: int, hidden: Tensor) -> Tensor | None:
        """The rows of the batch [branches * N, ...] whose deep part is computed, or None for all, given what comes in."""
        if len(hidden) != len(names) * images:
            raise SamplingError(
                f"{_KEY}: the network was given {len(hidden)} rows for {len(names)} branches of {images} images; "
                "accepted is a model that evaluates all branches in one batch."
            )
        parts = dict(zip(names, hidden.split(images), strict=True))
        due = self._due(parts)
        self._images = [image for image, is_due in enumerate(due) if is_due]
        for image in self._images:
            self._deep[image] += len(names)
        where = torch.tensor(self._images, dtype=torch.long, device=hidden.device)
        if self.threshold is not None:
            for name, part in parts.items():
                saved = self._saved.setdefault(name, _Saved(images))
                saved.given = part if saved.given is None else _replaced(saved.given, where, part[where])
        if len(self._images) == images:
            return None
        return torch.cat([where + place * images for place in range(len(names))])

    def _due(self, parts: Mapping[str, Tensor]) -> list[bool]:
        """Whether each image's deep part is to be computed again."""
        images = len(next(iter(parts.values())))
        if not self._open or any(name not in self._saved for name in parts):
            return [True] * images
        due = [False] * images
        for name, part in parts.items():
            saved = self._saved[name]
            if self._places is not None:
                due = [each or self._next - 1 in self._places for each in due]
            elif self.every is not None:
                old = [self._clock - since >= self.every for since in saved.since]
                due = [a or b for a, b in zip(due, old, strict=True)]
            if self.threshold is not None and saved.given is not None:
                now, before = part.float().flatten(1), saved.given.float().flatten(1)
                change = (now - before).abs().mean(1) / before.abs().mean(1)
                # NaN is no small change
                due = [a or not b for a, b in zip(due, (change <= self.threshold).tolist(), strict=True)]
        return due

    def _all_rows(self, names: Sequence[str], computed: Tensor | None) -> Tensor:
        """The deep part's output for all rows, given the one of the rows that were computed."""
        parts = [None] * len(names) if computed is None else computed.chunk(len(names))
        outputs = []
        for name, part in zip(names, parts, strict=True):
            saved = self._saved.setdefault(name, _Saved(len(self._deep)))
            if part is not None:
                where = torch.tensor(self._images, dtype=torch.long, device=part.device)
                saved.deep = part if saved.deep is None else _replaced(saved.deep, where, part)
                for image in self._images:
                    saved.since[image] = self._clock
            assert saved.deep is not None
            outputs.append(saved.deep)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _release(self) -> None:
        self._saved.clear()


def non_uniform(stages: int, every: int, centre: int, power: float) -> frozenset[int]:
    """Stages of DeepCache's non-uniform schedule: 0, and those of ``stages // every`` that lie denser about ``centre``.

    Raises:
        ConfigError: there are not as many different ones with any power above 1.
    """
    count, lowered = max(1, stages // every), power
    while lowered > 1:
        # roots of what lies before the centre are complex, and real parts are taken, as in the authors' code
        first, last = (complex(end) ** (1 / lowered) for end in (-centre, stages - centre))
        ways = [first + (last - first) * k / count for k in range(count + 1)]
        found = sorted({int((way**lowered).real) for way in ways})
        if len(found) - 1 == count or count == 1:
            return frozenset([0, *(place + centre for place in found[1:-1])])
        lowered -= 0.02
    raise ConfigError(
        f"{_KEY}.power: found {power:g}; about stage {centre} of {stages} no power from there to 1 gives {count} different ones. "
        "Accepted are a greater every, or a lesser centre."
    )


class _Saved:
    """Of one branch: what went into the deep part and what came out of it [N, c, h, w], and when, for each image."""

    def __init__(self, images: int):
        self.given: Tensor | None = None
        self.deep: Tensor | None = None
        self.since = [0] * images


class _Cached:
    """The denoiser of a run with a cache."""

    def __init__(self, cache: FeatureCache, denoiser: Denoiser):
        self.cache, self.denoiser = cache, denoiser

    def predict(self, x: Tensor, stage: Stage, branches: Sequence[Branch]) -> dict[str, Prediction]:
        return self.cache.predict(self.denoiser, x, stage, branches)


def _replaced(old: Tensor, where: Tensor, new: Tensor) -> Tensor:
    """``old`` with other rows in some places; no tensor is changed in place, somebody may hold it."""
    return new if len(where) == len(old) else old.index_copy(0, where, new)

"""PLADIS: cross-attention that is led from dense to sparse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from research.checks import check_choice, check_number
from research.errors import ConfigError, SamplingError
from research.guidance.layers import checked_layers, matching
from research.guidance.perturbed import LayerPatch
from research.guidance.wrapping import Wrapping
from research.sampling.interfaces import Batch, Branch, Guidance, ModelFacts, Scale, Solver, StepState

SPARSE = ("entmax15", "sparsemax")


class PLADIS(Wrapping):
    """PLADIS (Kim & Sim, arXiv:2503.07677, eq. 12): ``a + scale * (s - a)`` in place of each map ``a`` of cross-attention.

    ``a`` is the softmax of the scores and ``s`` their sparse counterpart, 1.5-entmax or sparsemax, in all branches that the base
    asks for, and so for no further evaluation: distilled models can have it. For self-attention-like layers over picture and text
    in one sequence it is refused. Put `SAG` around it and not inside, whose further evaluation it would not see.

    Args:
        scale: from 0, which is off; 1 is the sparse map alone; the authors take 2.
        sparse: "entmax15" or "sparsemax".
        layers: cross-attention layers, by pattern.
        base: for example ``CFG(5)``; by default none.

    Raises:
        ConfigError: a setting is not one of the accepted; on `check`, that the model has no such layers.
    """

    neutral = 0.0
    scale_range = (0.0, math.inf)

    def __init__(
        self,
        scale: float = 2.0,
        sparse: str = "entmax15",
        layers: str | Sequence[str] = "all",
        base: Guidance | None = None,
    ):
        super().__init__(base)
        self.scale = check_number("guidance.scale", scale, least=0)
        self.sparse = check_choice("guidance.sparse", sparse, SPARSE)
        self.layers = checked_layers(layers)

    @property
    def requires(self) -> frozenset[str]:
        return super().requires | (frozenset({"attention", "text"}) if self.scale else frozenset())

    def check(self, model: ModelFacts, solver: Solver) -> None:
        super().check(model, solver)
        if self.scale:
            self._choose(model)

    def start(self, run: Batch) -> None:
        super().start(run)
        self._chosen = self._choose(run.model) if run.scale_of(self) else []

    def _choose(self, model: ModelFacts) -> list[str]:
        if not (names := model.layers("cross-attention")):
            raise ConfigError(
                "guidance: PLADIS makes cross-attention to a text sparse, and not attention over picture and text in one "
                f"sequence; {model.name} has no such layer."
            )
        return matching(self.layers, names, kind="cross-attention", middle=model.middle_layers)

    def branches(self, state: StepState) -> Sequence[Branch]:
        asked = self.guidance.branches(state)
        scale = state.scale_of(self)
        if scale == 0:
            return asked
        patch = SparseAttention(self._chosen, scale, self.sparse)
        # attention to a text of one token, as the empty one may be, is the same dense and sparse
        idle = SparseAttention(self._chosen, scale, self.sparse, alters=False)
        patches = {b.name: patch if b.name == "cond" else idle for b in asked if b.model == "main"}
        return [replace(b, patches=(*b.patches, patches[b.name])) if b.name in patches else b for b in asked]


class SparseAttention(LayerPatch):
    """Attention whose maps are extrapolated from the softmax to its sparse counterpart."""

    kind = "cross-attention"

    def __init__(self, layers: Sequence[str], scale: Scale, sparse: str, *, alters: bool = True):
        super().__init__(layers)
        self.alters = alters
        self.scale, self.sparse = scale, {"entmax15": entmax15, "sparsemax": sparsemax}[sparse]

    def __call__(self, layer: Any, forward: Any, hidden: Tensor, **kwargs: Any) -> Any:
        with _Attention(self) as calls:
            found = forward(hidden, **kwargs)
        if not calls.count:
            raise SamplingError(
                f"guidance: PLADIS cannot reach the maps that {type(layer.processor).__name__} computes by itself; accepted is "
                "attention by torch's scaled_dot_product_attention (model.attention_slicing=null)."
            )
        return found

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, scale: float | None = None, **_: Any
    ) -> Tensor:
        """Attention of queries [N, heads, places, dim] to keys and values [N, heads, tokens, dim]."""
        scores = (q.float() @ k.float().transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, -1e9)
            else:
                scores = scores + attn_mask.float()
        dense = scores.softmax(-1)
        return ((dense + self.scale * (self.sparse(scores) - dense)) @ v.float()).to(v.dtype)


class _Attention(TorchFunctionMode):
    """While it lasts, torch's attention is that of a patch."""

    def __init__(self, patch: SparseAttention):
        super().__init__()
        self.patch, self.count = patch, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.count += 1
            given = dict(zip(("q", "k", "v", "attn_mask"), args, strict=False)) | dict(kwargs or {})
            for long, short in (("query", "q"), ("key", "k"), ("value", "v")):
                if long in given:
                    given[short] = given.pop(long)
            return self.patch.attend(**given)
        return func(*args, **(kwargs or {}))


def sparsemax(scores: Tensor) -> Tensor:
    """The point of the simplex nearest to the scores over the last dimension (Martins & Astudillo, arXiv:1602.02068)."""
    scores = scores - scores.amax(-1, keepdim=True)
    ordered = scores.sort(-1, descending=True).values
    rank = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
    total = ordered.cumsum(-1) - 1
    support = (rank * ordered > total).sum(-1, keepdim=True)
    threshold = total.gather(-1, support - 1) / support
    return (scores - threshold).clamp(min=0)


def entmax15(scores: Tensor) -> Tensor:
    """1.5-entmax over the last dimension (Peters et al., arXiv:1905.05702, algorithm 2): between softmax and sparsemax."""
    halves = (scores - scores.amax(-1, keepdim=True)) / 2
    ordered = halves.sort(-1, descending=True).values
    rank = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
    mean = ordered.cumsum(-1) / rank
    spread = rank * (ordered.square().cumsum(-1) / rank - mean.square())
    thresholds = mean - ((1 - spread) / rank).clamp(min=0).sqrt()
    support = (thresholds <= ordered).sum(-1, keepdim=True)
    return (halves - thresholds.gather(-1, support - 1)).clamp(min=0).square()

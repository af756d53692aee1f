"""Normalised attention guidance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from research.checks import check_choice, check_number
from research.errors import ConfigError
from research.guidance.layers import checked_layers, matching
from research.guidance.perturbed import LayerPatch, plain_branch
from research.guidance.wrapping import Wrapping
from research.sampling.interfaces import Batch, Branch, Condition, Guidance, ModelFacts, Scale, Solver, StepState

KIND = "text-attention"


class NAG(Wrapping):
    """Normalised attention guidance (Chen et al., arXiv:2505.21179, section 4): a negative prompt that works inside attention.

    Where the picture attends to the prompt, its states ``z`` (before they are projected out) are led away from those ``n`` that
    it has attending to the negative prompt: ``g = z + (scale - 1) * (z - n)``; where ``|g| > tau |z|`` it is cut to that length,
    token by token; and the layer goes on with ``alpha * g + (1 - alpha) * z``. It is one evaluation a stage, so that distilled
    and few-step models, which have no CFG, get negative prompts; with a base its conditional prediction is made so. The text may
    stand in cross-attention (UNets, PixArt, Sana) or beside the picture in one sequence (Stable Diffusion 3, Flux, Chroma,
    Qwen-Image, AuraFlow). On purpose different from the authors' code: where a network is told pooled text as well, that is the
    prompt's for both texts.

    Args:
        scale: from 1, which is off; the authors take 5 and more.
        tau: greatest length of ``g`` against ``z``, above 0.
        alpha: the share of ``g``, from 0 to 1; the authors take 0.5 for Stable Diffusion XL, 0.25 for Flux, 0.125 for Stable
            Diffusion 3.5.
        norm: how lengths are measured, 1 (sums of magnitudes) or 2; the authors' code has 2 for Flux and 1 for the others.
        layers: attention layers that look at a text, by pattern.
        base: for example ``CFG(5)``; by default none, which costs one evaluation a stage.

    Raises:
        ConfigError: a number is out of range, or the layers are no patterns; on `check`, that the model has no such layers.
    """

    neutral = 1.0
    scale_range = (1.0, float("inf"))

    def __init__(
        self,
        scale: float = 5.0,
        tau: float = 2.5,
        alpha: float = 0.25,
        norm: int = 1,
        layers: str | Sequence[str] = "all",
        base: Guidance | None = None,
    ):
        super().__init__(base)
        self.scale = check_number("guidance.scale", scale, least=1)
        self.tau = check_number("guidance.tau", tau, above=0)
        self.alpha = check_number("guidance.alpha", alpha, least=0, most=1)
        self.norm = check_choice("guidance.norm", norm, (1, 2))
        self.layers = checked_layers(layers)
        self._both: tuple[Condition, Condition, Condition] | None = None

    @property
    def requires(self) -> frozenset[str]:
        own = frozenset() if self.scale == 1 else frozenset({"attention", "text", "uncond"})
        return super().requires | own

    def check(self, model: ModelFacts, solver: Solver) -> None:
        super().check(model, solver)
        if self.scale != 1:
            self._choose(model)

    def start(self, run: Batch) -> None:
        super().start(run)
        self._both = None
        if run.scale_of(self) == 1:
            return
        self._chosen = self._choose(run.model)
        if "uncond" not in run.conditions:
            raise ConfigError(
                f"guidance: NAG leads away from a negative prompt; found none with parity, where {run.model.name} has no empty "
                "one. Accepted is task.negative_prompt."
            )

    def _choose(self, model: ModelFacts) -> list[str]:
        """Names of the layers that are patched."""
        if not (names := model.layers(KIND)):
            raise ConfigError(
                "guidance: NAG works where a picture attends to a text of its own, in cross-attention or beside it; "
                f"{model.name} has no such layer."
            )
        return matching(self.layers, names, kind=KIND, middle=model.middle_layers)

    def branches(self, state: StepState) -> Sequence[Branch]:
        asked = list(self.guidance.branches(state))
        scale = state.scale_of(self)
        if scale == 1 or self.stands_still(state):
            return asked
        plain = plain_branch(asked)
        told = self._told(plain.condition, state.conditions["uncond"])
        patch = NegativeText(self._chosen, scale, self.tau, self.alpha, self.norm, _lengths(*told[:2]))
        guided = replace(plain, condition=told[2], patches=(*plain.patches, patch), apart=True)
        return [guided if branch is plain else branch for branch in asked]

    def _told(self, condition: Condition, negative: Condition) -> tuple[Condition, Condition, Condition]:
        """The two, and one with both texts."""
        if self._both is None or self._both[0] is not condition or self._both[1] is not negative:
            self._both = condition, negative, with_both_texts(condition, negative)
        return self._both


def with_both_texts(condition: Condition, negative: Condition) -> Condition:
    """A condition with the tokens of another's text after its own [N, tokens + tokens, dim]; the rest is its own."""
    assert condition.embeds is not None
    assert negative.embeds is not None
    mask = None
    if condition.mask is not None or negative.mask is not None:
        like = condition.mask if condition.mask is not None else negative.mask
        assert like is not None
        mask = torch.cat(
            [like.new_ones(c.embeds.shape[:2]) if c.mask is None else c.mask for c in (condition, negative)],  # type: ignore[union-attr]
            dim=1,
        )
    return replace(condition, embeds=torch.cat([condition.embeds, negative.embeds], dim=1), mask=mask)


def _lengths(condition: Condition, negative: Condition) -> tuple[int, int]:
    assert condition.embeds is not None
    assert negative.embeds is not None
    return condition.embeds.shape[1], negative.embeds.shape[1]


class NegativeText(LayerPatch):
    """Attention to two texts, one after another, each without the other: the picture's states for the second lead away.

    Args:
        tokens: of the first and of the second text.
    """

    kind = KIND

    def __init__(
        self, layers: Sequence[str], scale: Scale, tau: float, alpha: float, norm: int, tokens: tuple[int, int]
    ):
        super().__init__(layers)
        self.scale, self.tau, self.alpha, self.norm, self.tokens = scale, tau, alpha, norm, tokens
        # tokens that a network puts before the texts, which belong to both
        self.lead = 0

    def __call__(self, layer: Any, forward: Any, hidden: Tensor, **kwargs: Any) -> Any:
        text = kwargs.get("encoder_hidden_states")
        if text is not None:
            self.lead = text.shape[1] - sum(self.tokens)
        length = self.lead + sum(self.tokens)  # of all text
        picture = hidden.shape[1] - (0 if text is not None else length)
        cuts = [_Cut(self.lead, self.tokens, second, length, picture) for second in (False, True)]
        toward, away = (self._told(cut, hidden, kwargs) for cut in cuts)
        last = layer.to_out[0] if getattr(layer, "to_out", None) else None
        if last is None:  # it hands on what it found
            found, other = forward(toward.pop("hidden_states"), **toward), forward(away.pop("hidden_states"), **away)
            guided = self.mixed(found[:, -picture:], other[:, -picture:])
            return torch.cat([found[:, :-picture], other[:, self.lead : -picture], guided], dim=1)
        states: list[Tensor] = []
        with _changed_input(last, states.append):
            other = forward(away.pop("hidden_states"), **away)

        def lead_away(mine: Tensor) -> Tensor:
            n = states[0]
            if mine.shape[1] == picture:
                return self.mixed(mine, n)
            return torch.cat([mine[:, :-picture], self.mixed(mine[:, -picture:], n[:, -picture:])], dim=1)

        with _changed_input(last, lead_away):
            found = forward(toward.pop("hidden_states"), **toward)
        if isinstance(found, tuple):  # the picture's states and the text's
            return (found[0], torch.cat([found[1], other[1][:, self.lead :]], dim=1))
        if text is None:
            return torch.cat([found[:, :-picture], other[:, self.lead : -picture], found[:, -picture:]], dim=1)
        return found

    def mixed(self, z: Tensor, n: Tensor) -> Tensor:
        """What the picture goes on with, [N, places, dim], of its states for the prompt and for the negative one."""
        wide, away = z.float(), n.float()
        g = wide + (self.scale - 1) * (wide - away)
        own, reach = (torch.linalg.vector_norm(v, ord=self.norm, dim=-1, keepdim=True) for v in (wide, g))
        g = g * (self.tau * own / reach.clamp_min(1e-12)).clamp(max=1)
        return torch.lerp(wide, g, self.alpha).to(z.dtype)

    def _told(self, cut: _Cut, hidden: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The layer's arguments for one of the two texts."""
        beside = kwargs.get("encoder_hidden_states") is not None
        told = dict(kwargs)
        told["hidden_states"] = hidden if beside else cut.sequence(hidden, 1)
        if beside:
            told["encoder_hidden_states"] = cut.text(kwargs["encoder_hidden_states"], 1)
        for name in ("attention_mask", "encoder_hidden_states_mask"):
            if isinstance(mask := kwargs.get(name), Tensor):
                told[name] = cut.mask(mask)
        if (places := kwargs.get("image_rotary_emb")) is not None:
            told["image_rotary_emb"] = cut.rotary(places)
        return told


class _Cut:
    """What of a layer's arguments belongs to one of the two texts and to the picture."""

    def __init__(self, lead: int, tokens: tuple[int, int], second: bool, length: int, picture: int):
        self.first, self.count, self.second = lead + tokens[0], tokens[second], second
        self.lead, self.length, self.picture = lead, length, picture

    def text(self, values: Tensor, dim: int) -> Tensor:
        if not self.second:
            return values.narrow(dim, 0, self.first)
        mine = values.narrow(dim, self.first, self.count)
        return torch.cat([values.narrow(dim, 0, self.lead), mine], dim) if self.lead else mine

    def sequence(self, values: Tensor, dim: int) -> Tensor:
        """Of a sequence of all text and the picture."""
        return torch.cat([self.text(values, dim), values.narrow(dim, self.length, self.picture)], dim)

    def mask(self, values: Tensor) -> Tensor:
        for dim in range(1, values.ndim):
            if values.shape[dim] == self.length + self.picture:
                values = self.sequence(values, dim)
            elif values.shape[dim] == self.length:
                values = self.text(values, dim)
        return values

    def rotary(self, places: Any) -> Any:
        one, two = places
        if one.shape[0] == self.length + self.picture:  # cosines and sines of the whole sequence
            return self.sequence(one, 0), self.sequence(two, 0)
        return one, two[: self.lead + self.count]  # the picture's and the text's, which begins at its own first place


@contextmanager
def _changed_input(layer: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """While it lasts, what a layer takes in goes through ``change``; None leaves it."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
        changed = change(args[0])
        return None if changed is None else (changed, *args[1:])

    handle = layer.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()

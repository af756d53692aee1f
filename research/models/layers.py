"""Which layers a network has that a patch may be for: transformer blocks, and attention by what it looks at."""

from __future__ import annotations

from typing import Any

from torch import nn

from research.errors import ConfigError

KINDS = ("self-attention", "attention-map", "cross-attention", "text-attention", "block", "picture-block")
_ORDER = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}  # as data passes through them
# lists of a transformer's main blocks, in that order; what else there is refines texts or embeds inputs
_MAIN = ("transformer_blocks", "joint_transformer_blocks", "layers", "single_transformer_blocks")
# attention over text and picture in one sequence, whose map nobody has published a perturbation of
_ONE_SEQUENCE = ("Lumina2", "AuraFlow", "Flux", "Chroma", "QwenDoubleStream")
# blocks that are given the tokens of text and picture in one sequence
_MIXED_BLOCKS = ("ChromaSingleTransformerBlock", "AuraFlowSingleTransformerBlock", "Lumina2TransformerBlock")
_LINEAR = ("Linear",)  # has no map


def layer_names(network: nn.Module, kind: str) -> list[str]:
    """Names of the network's layers of a kind, in the order in which data passes through them.

    "block" are transformer blocks, or the self-attention layers of a network that has none; "picture-block" those of them that
    are given the picture's tokens apart from a text's. "self-attention" are attention layers in which the picture looks at
    itself, whatever else it looks at; "attention-map" those of them that weigh places of the picture alone by a softmax, and so
    have a map; "cross-attention" those in which it looks at a text; "text-attention" these and those over a text and the
    picture in one sequence, where the text is as the network was told it.

    Raises:
        ConfigError: an unknown kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"guidance.layers: found layers of kind {kind!r}; accepted: {', '.join(KINDS)}.")
    if kind == "picture-block":
        blocks = layer_names(network, "block")
        return [name for name in blocks if type(network.get_submodule(name)).__name__ not in _MIXED_BLOCKS]
    main = [name for name in _MAIN if isinstance(getattr(network, name, None), nn.ModuleList)]
    if kind == "block":
        found = [f"{name}.{i}" for name in main for i in range(len(getattr(network, name)))] or _unet_blocks(network)
        return found or layer_names(network, "self-attention")
    if main:
        modules = [
            (f"{name}.{inner}", module) for name in main for inner, module in getattr(network, name).named_modules()
        ]
    else:
        modules = sorted(network.named_modules(), key=lambda item: _ORDER.get(item[0].partition(".")[0], 3))
    return [name for name, module in modules if kind in _kinds_of(module)]


def _unet_blocks(network: nn.Module) -> list[str]:
    from diffusers.models.attention import BasicTransformerBlock

    modules = sorted(network.named_modules(), key=lambda item: _ORDER.get(item[0].partition(".")[0], 3))
    return [name for name, module in modules if isinstance(module, BasicTransformerBlock)]


def _kinds_of(module: Any) -> tuple[str, ...]:
    """The kinds of attention that a module is."""
    from diffusers.models.attention_processor import Attention

    if type(module).__name__ == "FluxAttention":
        return ("text-attention",)
    if not isinstance(module, Attention):
        return ()
    if module.is_cross_attention:
        return ("cross-attention", "text-attention")
    how = type(module.processor).__name__
    if any(name in how for name in _ONE_SEQUENCE):
        # Lumina 2 mixes the tokens of its text before
        return () if "Lumina2" in how else ("text-attention",)
    joint, linear = getattr(module, "add_q_proj", None) is not None, any(name in how for name in _LINEAR)
    if joint:
        return ("self-attention", "text-attention")
    return ("self-attention",) if linear else ("self-attention", "attention-map")

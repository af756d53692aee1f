"""NAG: its formula, and that each text is seen without the other."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor

from research import LoopSampler
from research.errors import ConfigError
from research.guidance import CFG, NAG, PAG, Interval, Schedule
from research.guidance.nag import NegativeText
from research.tasks import TextToImage


def sample(model, guidance, negative="a dog", seeds=(1, 2), steps=3):
    task = TextToImage("a cat", negative)
    return LoopSampler(model, "ddim", guidance=guidance).sample(task, seeds=list(seeds), steps=steps)


def far(a, b) -> float:
    return float((a - b).abs().max() / b.abs().max())


def attended(layer, hidden, text):
    """Attention to a text before it is projected out, by hand."""
    q, k, v = (
        each.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        for each in (layer.to_q(hidden), layer.to_k(text), layer.to_v(text))
    )
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def by_the_paper(z, n, scale, tau, alpha, norm):
    g = scale * z - (scale - 1) * n
    ratio = g.norm(p=norm, dim=-1, keepdim=True) / z.norm(p=norm, dim=-1, keepdim=True)
    return alpha * g * torch.minimum(ratio, torch.tensor(tau)) / ratio + (1 - alpha) * z


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("scale", [1.5, 11.0])
@pytest.mark.fidelity(
    "guidance/nag",
    source="arXiv:2505.21179, section 4",
    against="its formula on cross-attention; the authors' code gives the same (run apart: Flux, 2e-7)",
    within="1e-5",
    differs="pooled text is the prompt's for both texts",
)
def test_nag_follows_the_formula(scale, norm):
    torch.manual_seed(0)
    layer = Attention(query_dim=12, cross_attention_dim=10, heads=3, dim_head=4)
    hidden, text, other = torch.randn(2, 9, 12), torch.randn(2, 5, 10), torch.randn(2, 7, 10)
    patch = NegativeText(["all"], scale, 1.2, 0.4, norm, (5, 7))
    with torch.no_grad():
        found = patch(layer, layer.forward, hidden, encoder_hidden_states=torch.cat([text, other], 1))
        mixed = by_the_paper(attended(layer, hidden, text), attended(layer, hidden, other), scale, 1.2, 0.4, norm)
        assert far(found, layer.to_out[0](mixed)) < 1e-5


def test_nag_beside_the_picture_in_one_sequence():
    """As Flux has it: texts before the picture, each without the other, and both go on."""
    torch.manual_seed(1)
    d, places = 12, 6
    common = {"query_dim": d, "dim_head": 4, "heads": 3, "processor": FluxAttnProcessor()}
    double = FluxAttention(added_kv_proj_dim=d, context_pre_only=False, **common)
    single = FluxAttention(pre_only=True, **common)
    picture, text, other = torch.randn(2, places, d), torch.randn(2, 3, d), torch.randn(2, 4, d)
    patch = NegativeText(["all"], 4.0, 2.5, 0.25, 2, (3, 4))
    kept = []
    double.to_out[0].register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    with torch.no_grad():
        alone = [double(picture, encoder_hidden_states=t) for t in (text, other)]
        z, n = kept
        found, texts = patch(double, double.forward, picture, encoder_hidden_states=torch.cat([text, other], 1))
        assert far(found, double.to_out[0](by_the_paper(z, n, 4.0, 2.5, 0.25, 2))) < 1e-5
        assert torch.equal(texts, torch.cat([alone[0][1], alone[1][1]], 1))
        z, n = (single(torch.cat([t, picture], 1)) for t in (text, other))
        both = patch(single, single.forward, torch.cat([text, other, picture], 1))
        assert far(both[:, 7:], by_the_paper(z[:, 3:], n[:, 4:], 4.0, 2.5, 0.25, 2)) < 1e-5
        assert torch.equal(both[:, :7], torch.cat([z[:, :3], n[:, :4]], 1))


def test_off_at_1_and_one_evaluation_above(sd):
    plain = sample(sd, None, None)
    assert torch.equal(sample(sd, NAG(1.0), None).latents, plain.latents)
    assert torch.equal(sample(sd, NAG(1.0, base=CFG(3)), None).latents, sample(sd, CFG(3), None).latents)
    guided = sample(sd, NAG(5.0))
    assert guided.nfe_by_branch == {"cond": 3}
    assert far(guided.latents, plain.latents) > 1e-3
    assert sample(sd, NAG(5.0, base=CFG(3))).nfe_by_branch == {"cond": 3, "uncond": 3}


def test_a_negative_prompt_that_is_the_prompt_changes_nothing(sd):
    assert far(sample(sd, NAG(9.0), "a cat").latents, sample(sd, None, None).latents) < 1e-5
    assert far(sample(sd, NAG(9.0), "a dog").latents, sample(sd, NAG(9.0), "a house").latents) > 1e-4


@pytest.mark.slow
def test_it_goes_with_others_and_leaves_nothing(sd):
    before = sample(sd, CFG(3.0)).latents
    found = sample(sd, PAG(1.0, base=NAG(4.0, base=CFG(3.0))))
    assert found.nfe_by_branch == {"cond": 3, "uncond": 3, "perturbed": 3}
    limited = sample(sd, Interval(NAG(4.0), steps=(0.0, 0.5)))
    scheduled = sample(sd, Schedule(NAG(4.0), "linear"))
    assert not torch.equal(limited.latents, scheduled.latents)
    assert torch.equal(sample(sd, CFG(3.0)).latents, before)
    together = sample(sd, NAG(4.0, base=CFG(3.0)), seeds=(5, 6, 7)).latents
    assert far(sample(sd, NAG(4.0, base=CFG(3.0)), seeds=(6,)).latents[0], together[1]) < 1e-4


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"scale": 0.5}, "scale"),
        ({"scale": math.nan}, "scale"),
        ({"tau": 0}, "tau"),
        ({"alpha": 1.1}, "alpha"),
        ({"norm": 3}, "norm"),
        ({"layers": []}, "layers"),
    ],
)
def test_settings_out_of_range_are_refused(settings, key):
    with pytest.raises(ConfigError, match=rf"guidance\.{key}: found"):
        NAG(**settings)


def test_a_model_without_a_text_is_refused(pixel):
    with pytest.raises(ConfigError, match=r"NAG needs .*takes text"):
        LoopSampler(pixel, guidance=NAG(5.0))

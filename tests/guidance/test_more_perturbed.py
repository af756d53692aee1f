"""TPG, SWG and PLADIS: their formulas, and what they cost."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from guidance_samples import normal, relative, state_of

from research import LoopSampler
from research.errors import ConfigError
from research.guidance import CFG, PLADIS, SWG, TPG
from research.guidance.pladis import SparseAttention, entmax15, sparsemax
from research.guidance.tpg import ShuffledTokens
from research.sampling import Prediction
from research.sampling.noise import NoiseSource
from research.tasks import TextToImage

METHODS = {"TPG": TPG, "SWG": SWG, "PLADIS": PLADIS}


def sample(model, guidance, seeds=(1, 2), **settings):
    return LoopSampler(model, "ddim", guidance=guidance, **settings).sample(TextToImage("a cat"), seeds=seeds, steps=2)


@pytest.mark.fidelity(
    "guidance/tpg",
    source="arXiv:2506.10036, section 4",
    against="the block on permuted tokens, as the authors' block does",
    within="1e-6",
    differs="a permutation for each image, from its noise",
)
def test_tpg_gives_the_block_its_tokens_in_another_order():
    torch.manual_seed(0)
    block = BasicTransformerBlock(8, 2, 4, cross_attention_dim=6)
    hidden, text = torch.randn(2, 9, 8), torch.randn(2, 3, 6)
    with torch.no_grad():
        patch = ShuffledTokens(["all"], NoiseSource([4, 5]))
        found = patch(block, block.forward, hidden, encoder_hidden_states=text)
        orders = NoiseSource([4, 5]).draw("hook/tpg", (9,)).argsort(1)
        mixed = torch.stack([tokens[order] for tokens, order in zip(hidden, orders, strict=True)])
        assert relative(found, block(mixed, encoder_hidden_states=text)) < 1e-6
        assert not torch.equal(orders[0], orders[1])
        assert sorted(orders[0].tolist()) == list(range(9))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.fidelity(
    "guidance/swg",
    source="arXiv:2411.10257, section 4",
    against="the authors' loop over windows and their mask, by hand",
    within="1e-6",
    differs="what no window covers is not pushed",
)
def test_swg_averages_overlapping_windows(masked):
    def network(x):  # sees as far as its input goes
        return x - x.mean((2, 3), keepdim=True)

    class Model:
        def predict(self, x, stage, branches):
            return {branch.name: Prediction(network(x), "epsilon") for branch in branches}

    guidance = SWG(1.5, window=0.625, windows=2, masked=masked)
    state = state_of(x=normal(3).float(), guidance=guidance)
    state.run.denoiser, state.run.solver.scale_input = Model(), lambda x, stage: x
    type(state.run.model).size_multiple = type(state.run.model).vae_factor = 1
    guidance.start(state.run)
    state.branches = guidance.branches(state)
    x = state.x
    found = guidance.combine(state, state.predict(state.branches)).prediction.value
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    for left in (0, 3):
        for top in (0, 3):
            total[:, :, top : top + 5, left : left + 5] += network(x[:, :, top : top + 5, left : left + 5])
            count[:, :, top : top + 5, left : left + 5] += 1
    mask = (count > 1).float() if masked else 1.0
    assert relative(found, network(x) + 1.5 * mask * (network(x) - total / count)) < 1e-6
    assert state.run.nfe == {"cond": 1, "window": 4}


def by_bisection(scores, alpha):
    """Alpha-entmax of one row: p = max((alpha - 1) z - t, 0) ^ (1 / (alpha - 1)) for the t at which it sums to 1."""
    z = (alpha - 1) * scores.double()
    low, high = z.max() - 1, z.max()
    for _ in range(200):
        middle = (low + high) / 2
        total = ((z - middle).clamp(min=0) ** (1 / (alpha - 1))).sum()
        low, high = (middle, high) if total > 1 else (low, middle)
    return (z - low).clamp(min=0) ** (1 / (alpha - 1))


@pytest.mark.fidelity(
    "guidance/pladis",
    source="arXiv:2503.07677, eq. 12",
    against="its formula, with entmax by bisection; the official code could not be had",
    within="1e-5",
)
def test_pladis_extrapolates_from_dense_to_sparse_maps():
    torch.manual_seed(0)
    layer = Attention(query_dim=8, cross_attention_dim=6, heads=2, dim_head=4)
    hidden, text = 3 * torch.randn(2, 5, 8), 3 * torch.randn(2, 7, 6)
    q, k, v = (
        each.unflatten(-1, (2, 4)).transpose(1, 2) for each in (layer.to_q(hidden), layer.to_k(text), layer.to_v(text))
    )
    scores = q @ k.transpose(-1, -2) / math.sqrt(4)
    for name, alpha in (("entmax15", 1.5), ("sparsemax", 2.0)):
        rows = [by_bisection(row, alpha) for row in scores.reshape(-1, 7)]
        sparse = torch.stack(rows).reshape(scores.shape).float()
        maps = F.softmax(scores, -1) + 2.0 * (sparse - F.softmax(scores, -1))
        with torch.no_grad():
            patch = SparseAttention(["all"], 2.0, name)
            found = patch(layer, layer.forward, hidden, encoder_hidden_states=text)
            expected = layer.to_out[0]((maps @ v).transpose(1, 2).flatten(2))
        assert relative(found, expected) < 1e-5
    assert torch.allclose(entmax15(torch.zeros(1, 4)), torch.full((1, 4), 0.25))
    assert torch.equal(sparsemax(torch.tensor([[9.0, 1.0]])), torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize(("name", "more"), [("TPG", {"shuffled": 2}), ("SWG", {"window": 8}), ("PLADIS", {})])
def test_off_is_the_base_and_on_it_is_not(name, more, sd):
    base = sample(sd, CFG(3.0))
    off, on = (sample(sd, METHODS[name](scale, base=CFG(3.0))) for scale in (0.0, 1.5))
    assert torch.equal(off.latents, base.latents)
    assert off.nfe_by_branch == base.nfe_by_branch
    assert on.nfe_by_branch == {**base.nfe_by_branch, **more}
    assert relative(on.latents, base.latents) > 1e-4
    assert relative(sample(sd, METHODS[name](1.5, base=CFG(3.0)), seeds=[2]).latents[0], on.latents[1]) < 1e-4


@pytest.mark.parametrize("settings", [{"window": 1.0}, {"windows": 4}, {"masked": 1}, {"scale": -1}])
def test_windows_that_cannot_be(settings):
    with pytest.raises(ConfigError, match=rf"guidance\.{next(iter(settings))}: found"):
        SWG(**settings)


def test_windows_that_the_latents_do_not_have(sd):
    with pytest.raises(ConfigError, match=r"guidance\.window: found 0\.99, .* smaller than the latents that overlaps"):
        LoopSampler(sd, guidance=SWG(1.0, window=0.99))


def test_attention_that_pladis_cannot_reach_is_refused(sd, pixel):
    with pytest.raises(ConfigError, match="PLADIS needs"):
        LoopSampler(pixel, guidance=PLADIS(1.0))
    with pytest.raises(ConfigError, match=r"guidance\.sparse: found 'relu'"):
        PLADIS(1.0, sparse="relu")

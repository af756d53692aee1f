"""Patches of layers: which layers there are, which a pattern takes, whose rows a patch sees, and that nothing of it stays."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from research.errors import ConfigError, SamplingError
from research.guidance import Guidance
from research.guidance.layers import checked_layers, matching
from research.guidance.perturbed import LayerPatch
from research.models.denoiser import NetworkDenoiser
from research.models.layers import KINDS, layer_names
from research.models.patching import has_attention
from research.models.summary import outline
from research.sampling import Branch, Condition, LoopSampler
from research.sampling.timeline import Stage
from research.tasks import TextToImage, Unconditional

NAMES = [
    "down_blocks.1.attentions.0.attn1",
    "down_blocks.10.attentions.0.attn1",
    "mid_block.attentions.0.attn1",
    "up_blocks.0.attentions.0.attn1",
    "up_blocks.0.attentions.1.attn1",
]


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("mid", [2]),
        ("mid_block", [2]),
        ("down", [0, 1]),
        ("down.1", [0]),  # and not down_blocks.10
        ("up_blocks.0.attentions.1.attn1", [4]),
        ("up.0.attentions", [3, 4]),
        ("*.attentions.1.*", [4]),
        ("down.?.*", [0]),
    ],
)
def test_a_pattern_is_a_name_a_beginning_a_short_form_or_has_wildcards(pattern: str, taken: list[int]) -> None:
    assert matching([pattern], NAMES) == [NAMES[i] for i in taken]


def test_patterns_together_take_each_layer_once_and_in_order() -> None:
    assert matching(["up", "mid", "mid_block.*"], NAMES) == NAMES[2:]


@pytest.mark.parametrize("pattern", ["middle", "down_blocks.1.att", "attn1", "down.2"])
def test_a_pattern_that_matches_nothing_lists_what_there_is(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"guidance\.layers: ") as error:
        matching(["mid", pattern], NAMES)
    assert repr(pattern) in str(error.value)
    assert NAMES[0] in str(error.value)


@pytest.mark.parametrize("found", [None, "", [], ["mid", " "], 3, ["mid", 1]])
def test_what_is_no_pattern_is_refused(found: object) -> None:
    with pytest.raises(ConfigError, match=r"guidance\.layers: found"):
        checked_layers(found)


@pytest.mark.spread(3)
@pytest.mark.parametrize("name", ["sd", "sd_odd", "sd_inpaint", "pixel", "class_model"])
def test_an_outline_has_the_layers_and_offers_of_the_loaded_model(name: str, request) -> None:
    model = request.getfixturevalue(name)
    told = outline(str(model.path))
    assert told is not None
    for kind in KINDS:
        assert told.layers(kind) == model.layers(kind)
        assert all(isinstance(model.network.get_submodule(layer), nn.Module) for layer in model.layers(kind))
    assert told.supports == model.supports >= {"attention"}


def test_kinds_of_layers(sd, pixel) -> None:
    assert [name.rpartition(".")[2] for name in sd.layers("self-attention")] == ["attn1"] * len(sd.layers("block"))
    assert [name + ".attn2" for name in sd.layers("block")] == sd.layers("cross-attention")
    assert sd.layers("text-attention") == sd.layers("cross-attention")
    assert pixel.layers("block") == pixel.layers("self-attention")
    assert pixel.layers("cross-attention") == []
    with pytest.raises(ConfigError, match="self-attention, attention-map, cross-attention, text-attention, block"):
        sd.layers("norm")


@pytest.mark.parametrize("middle", [True, False])
@pytest.mark.parametrize("down", ["DownBlock2D", "AttnDownBlock2D"])
def test_whether_a_network_has_attention_is_told_from_its_config(middle: bool, down: str) -> None:
    with torch.device("meta"):
        unet = UNet2DModel(
            sample_size=8,
            block_out_channels=(8,),
            down_block_types=(down,),
            up_block_types=("UpBlock2D",),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            add_attention=middle,
        )
    assert has_attention(unet.config, text=False) is bool(layer_names(unet, "self-attention"))


# --- rows


class Spoil(LayerPatch):
    """Doubles what the layer returns and keeps what it was shown."""

    def __init__(self, layers=("mid",), kind="self-attention", factor=2.0):
        super().__init__(layers)
        self.kind, self.factor, self.shown = kind, factor, []

    def __call__(self, layer, forward, hidden, **kwargs):
        self.shown.append((hidden, kwargs))
        return self.factor * forward(hidden, **kwargs)


class Break(LayerPatch):
    def __call__(self, layer, forward, hidden, **kwargs):
        raise RuntimeError("a patch of one's own broke")


def stage() -> Stage:
    return Stage(0, 0, 1, torch.tensor(500), 500.0, 1.0, 0.5, 0.0, 0.7, 0.7, True)


def conditions(model) -> list[Condition]:
    generator = torch.Generator().manual_seed(0)
    width = model.network.config.cross_attention_dim
    return [Condition(embeds=torch.randn(2, 16, width, generator=generator)) for _ in range(2)]


def latents(model, n=2) -> torch.Tensor:
    return torch.randn(n, *model.latent_shape(None, None), generator=torch.Generator().manual_seed(1))


def predicted(model, branches, together="all") -> dict[str, torch.Tensor]:
    denoiser = NetworkDenoiser(model.network, model.evaluate, kind="epsilon", together=together)
    with torch.no_grad():
        return {k: p.value for k, p in denoiser.predict(latents(model), stage(), branches).items()}


def is_whole(model) -> bool:
    return not any("forward" in module.__dict__ or module._forward_hooks for module in model.network.modules())


@pytest.mark.parametrize("kind", ["self-attention", "cross-attention", "block"])
def test_a_patch_sees_its_own_rows_alone_and_changes_them_alone(sd, kind: str) -> None:
    u, c = conditions(sd)
    patch = Spoil(kind=kind)
    alone = predicted(sd, [Branch("uncond", u), Branch("cond", c)])
    found = predicted(sd, [Branch("uncond", u), Branch("p", c, patches=(patch,)), Branch("cond", c)])
    assert torch.allclose(found["uncond"], alone["uncond"], atol=1e-5)
    assert torch.allclose(found["cond"], alone["cond"], atol=1e-5)
    assert (found["p"] - alone["cond"]).abs().max() > 1e-3
    hidden, kwargs = patch.shown[0]
    assert len(patch.shown) == len(matching(["mid"], sd.layers(kind)))
    assert len(hidden) == 2
    if kind != "self-attention":
        assert torch.equal(kwargs["encoder_hidden_states"], c.embeds)
    assert is_whole(sd)


def test_a_patched_batch_gives_what_each_branch_gives_alone(sd_odd) -> None:
    u, c = conditions(sd_odd)
    branches = [
        Branch("one", c, patches=(Spoil(("down",)),)),
        Branch("cond", c),
        Branch("two", c, patches=(Spoil(("up",)), Spoil(("all",), factor=0.5))),
        Branch("uncond", u),
    ]
    alone = {branch.name: predicted(sd_odd, [branch])[branch.name] for branch in branches}
    for together in ("all", "plain", "none"):
        found = predicted(sd_odd, branches, together)
        assert all(torch.allclose(found[name], value, atol=1e-5) for name, value in alone.items())


def test_patches_of_one_branch_go_around_one_another_in_their_order(sd) -> None:
    (c, _), order = conditions(sd), []

    class Named(Spoil):
        def __call__(self, layer, forward, hidden, **kwargs):
            order.append(self.factor)
            return super().__call__(layer, forward, hidden, **kwargs)

    both = predicted(sd, [Branch("p", c, patches=(Named(factor=2.0), Named(factor=3.0)))])["p"]
    assert order == [3.0, 2.0]
    assert torch.allclose(both, predicted(sd, [Branch("p", c, patches=(Spoil(factor=6.0),))])["p"], atol=1e-5)


class Asks(Guidance):
    """The conditional prediction, and a patched one that is thrown away."""

    def __init__(self, patch):
        self.patch = patch

    def branches(self, state):
        c = state.conditions["cond"]
        return [Branch("cond", c), Branch("patched", c, patches=(self.patch,))]


@pytest.fixture(params=["sd", pytest.param("pixel", marks=pytest.mark.slow)])
def model_and_task(request) -> tuple:
    name = request.param
    return request.getfixturevalue(name), TextToImage("cat") if name == "sd" else Unconditional()


def test_nothing_of_a_patch_stays_after_a_run_or_an_exception(model_and_task) -> None:
    model, task = model_and_task
    plain = LoopSampler(model).sample(task, seeds=[0], steps=2).latents
    patched = LoopSampler(model, guidance=Asks(Spoil())).sample(task, seeds=[0], steps=2)
    assert patched.nfe_by_branch == {"cond": 2, "patched": 2}
    assert is_whole(model)
    with pytest.raises(RuntimeError, match="a patch of one's own broke"):
        LoopSampler(model, guidance=Asks(Break(["mid"]))).sample(task, seeds=[0], steps=2)
    gc.collect()
    assert is_whole(model)
    assert torch.equal(LoopSampler(model).sample(task, seeds=[0], steps=2).latents, plain)


def test_a_forward_that_somebody_set_on_a_layer_is_kept(sd) -> None:
    layer = sd.network.get_submodule(matching(["mid"], sd.layers("self-attention"))[0])
    calls, own = [], layer.forward
    (c, _) = conditions(sd)
    try:
        layer.forward = mine = lambda *a, **k: calls.append(1) or own(*a, **k)
        predicted(sd, [Branch("cond", c), Branch("p", c, patches=(Spoil(),))])
        assert layer.__dict__["forward"] is mine
        assert calls
    finally:
        del layer.forward


# --- a patch that does nothing


class Idle(LayerPatch):
    def __call__(self, layer, forward, hidden, **kwargs):
        return forward(hidden, **kwargs)


class Records(Idle):
    alters = False


def test_a_patched_branch_that_equals_the_plain_one_is_an_error_that_names_the_patch(model_and_task) -> None:
    model, task = model_and_task
    with pytest.raises(SamplingError, match=r"branch 'patched' \(Idle on mid\)"):
        LoopSampler(model, guidance=Asks(Idle(["mid"]))).sample(task, seeds=[0, 1], steps=2)
    LoopSampler(model, guidance=Asks(Records(["mid"]))).sample(task, seeds=[0, 1], steps=2)
    assert is_whole(model)


def test_a_patch_without_effect_on_the_prediction_is_an_error(sd) -> None:
    network, (c, _) = copy.deepcopy(sd.network), conditions(sd)
    nn.init.zeros_(network.conv_out.weight)

    def evaluate(x, t, told):
        return network(x, t, encoder_hidden_states=told.embeds, return_dict=False)[0]

    denoiser = NetworkDenoiser(network, evaluate, kind="epsilon")
    branches = [Branch("cond", c), Branch("p", c, patches=(Spoil(),))]
    with pytest.raises(SamplingError, match=r"'p' .*change nothing"), torch.no_grad():
        denoiser.predict(latents(sd), stage(), branches)


def test_the_comparison_costs_something_at_the_first_stage_only(sd) -> None:
    counted = []

    class Counts(Spoil):
        def __call__(self, layer, forward, hidden, **kwargs):
            self.layer = layer
            return super().__call__(layer, forward, hidden, **kwargs)

    patch = Counts()
    layer = sd.network.get_submodule(matching(["mid"], sd.layers("self-attention"))[0])
    handle = layer.to_v.register_forward_hook(lambda *_: counted.append(1))
    try:
        LoopSampler(sd, guidance=Asks(patch)).sample(TextToImage("cat"), seeds=[0], steps=4)
    finally:
        handle.remove()
    # plain rows and patched rows at each of four stages, and once more for the comparison
    assert len(counted) == 2 * 4 + 1


def test_a_patch_that_returns_another_shape_is_refused(sd) -> None:
    class Cuts(LayerPatch):
        def __call__(self, layer, forward, hidden, **kwargs):
            return hidden[:, :1]

    (c, _) = conditions(sd)
    with pytest.raises(SamplingError, match="the patch Cuts of branch 'p' returned"):
        predicted(sd, [Branch("p", c, patches=(Cuts(["mid"]),))])


def test_a_patch_for_layers_that_are_not_there_is_refused(sd) -> None:
    (c, _) = conditions(sd)
    with pytest.raises(ConfigError, match="'nowhere' fits no self-attention layer"):
        predicted(sd, [Branch("p", c, patches=(Spoil(["nowhere"]),))])
    assert is_whole(sd)

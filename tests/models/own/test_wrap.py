"""Networks of one's own in the loop: the exact denoiser of Gaussian data in each way in which networks are trained."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from research import LoopSampler
from research.errors import UserError
from research.guidance import CFG, TSG, Autoguidance
from research.models import wrap
from research.models.own.levels import PREDICTS, SCALINGS
from research.points import points_of
from research.sigmas import Karras
from research.solvers import Levels
from research.solvers.levels import TrainedLevels
from research.tasks import ImageToImage, TextToImage, Unconditional

STD = 0.5


def exact(predicts: str, scaling: str):
    """What the best network predicts for data N(0, STD^2), told the log-SNR."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        ratio = torch.exp(-t.double() / 2).clamp(max=1e9)[:, None]
        signal, noise = {
            "ve": (torch.ones_like(ratio), ratio),
            "vp": (1 / torch.sqrt(1 + ratio**2), ratio / torch.sqrt(1 + ratio**2)),
            "flow": (1 / (1 + ratio), ratio / (1 + ratio)),
        }[scaling]
        variance = signal**2 * STD**2 + noise**2
        x0, epsilon = signal * STD**2 / variance * x.double(), noise / variance * x.double()
        return {
            "x0": x0,
            "epsilon": epsilon,
            "v": (signal * epsilon - noise * x0) / torch.hypot(signal, noise),
            "flow": epsilon - x0,
            "flow_to_data": x0 - epsilon,
            "score": -x.double() / variance,
        }[predicts].float()

    return network


def points(levels, predicts: str, scaling: str, *, steps: int = 10, seeds=range(8), scheduler=None) -> Tensor:
    model = wrap(
        exact(predicts, scaling), predicts=predicts, levels=levels, shape=(2,), told="log_snr", scaling=scaling
    )
    sigmas = Karras(sigma_max=20.0) if levels in ("cosine", "linear") else None
    sampler = LoopSampler(model, scheduler or "model", sigmas=sigmas)
    return sampler.sample(Unconditional(), seeds=seeds, steps=steps).points


@pytest.mark.spread(4)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("levels", ["cosine", "linear", "edm", "flow"])
def test_whatever_a_network_predicts_and_sees_the_points_are_the_same(levels: str, predicts: str, scaling: str) -> None:
    # flows begin a little later where the network needs signal
    like = "epsilon" if levels == "flow" and (predicts in ("epsilon", "score") or scaling == "ve") else "x0"
    scale = {"edm": "ve", "flow": "flow"}.get(levels, "vp")
    torch.testing.assert_close(points(levels, predicts, scaling), points(levels, like, scale), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("levels", "scheduler"), [("edm", "heun"), ("edm", "dpmpp_2m"), ("cosine", "dpmpp_2m"), ("flow", "flow_heun")]
)
def test_the_spread_of_the_data_is_met(levels: str, scheduler: str) -> None:
    found = points(levels, "x0", "vp", steps=24, seeds=range(400), scheduler=scheduler)
    assert found.shape == (400, 2)
    assert float(found.std()) == pytest.approx(STD, rel=0.06)


@pytest.mark.slow
def test_the_told_level_is_that_of_the_stage() -> None:
    told: list[float] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        told.append(float(t[0]))
        assert t.shape == (2,)
        return x

    def levels_told(how, levels) -> tuple[list[float], list[dict]]:
        told.clear()
        model = wrap(network, predicts="x0", levels=levels, shape=(3,), told=how)
        result = LoopSampler(model).sample(Unconditional(), seeds=[0, 1], steps=4)
        return list(told), result.trace["stages"]

    found, stages = levels_told(None, "edm")
    assert found == pytest.approx([stage["sigma"] for stage in stages])
    assert found[0] == pytest.approx(80.0)
    assert found[-1] == pytest.approx(0.002)
    found, stages = levels_told(None, "cosine")
    assert found == [stage["t"] for stage in stages]
    assert found[0] == 999
    assert levels_told(None, "flow")[0] == pytest.approx([1.0, 0.75, 0.5, 0.25], abs=0.002)
    assert levels_told("time_to_data", "flow")[0][0] == 0.0
    assert levels_told("index", "linear")[0][0] == 999
    assert levels_told(lambda sigma: sigma.log() / 4, "edm")[0][0] == pytest.approx(1.0955, abs=1e-3)
    found, stages = levels_told("log_snr", "edm")
    assert found == pytest.approx([stage["log_snr"] for stage in stages], rel=1e-5)


def test_a_guidance_may_tell_another_time() -> None:
    told: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        told.append(t)
        return x * 0.5

    model = wrap(network, predicts="x0", levels="edm", shape=(2,))
    LoopSampler(model, guidance=TSG(2.0)).sample(Unconditional(), seeds=[0, 1], steps=4)
    assert any(len(t) > 2 and len(set(t.tolist())) > 1 for t in told)
    assert all(bool(((t >= 0.0019) & (t <= 80.1)).all()) for t in told)


class Classes(nn.Module):
    """Pulls to a place of its own for each of three classes, and to the middle for none."""

    def __init__(self) -> None:
        super().__init__()
        places = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        self.places = nn.Embedding.from_pretrained(places, freeze=False)

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor) -> Tensor:
        pull = (1 / (1 + sigma**2))[:, None]
        return self.places(class_labels) + pull * (x - self.places(class_labels)) * 0.1


def test_labels_and_their_null_class_serve_classifier_free_guidance() -> None:
    model = wrap(Classes(), predicts="x0", levels="edm", shape=(2,), labels=3)
    assert (model.n_classes, model.null_class, model.name) == (3, 3, "Classes")

    def of(scale: float) -> Tensor:
        result = LoopSampler(model, guidance=CFG(scale)).sample(Unconditional([0, 1, 2]), seeds=[0, 1, 2], steps=6)
        assert result.nfe_by_branch == ({"cond": 6} if scale == 1 else {"uncond": 6, "cond": 6})
        return result.points

    torch.testing.assert_close(of(1.0), torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), atol=0.02, rtol=0)
    torch.testing.assert_close(of(3.0), 3 * of(1.0), atol=0.02, rtol=0)
    with pytest.raises(UserError, match="from 0 to 2"):
        LoopSampler(model).sample(Unconditional(3), seeds=[0], steps=2)
    worse = LoopSampler(model, guidance=Autoguidance(2.0, noise=0.5)).sample(Unconditional(0), seeds=[0], steps=2)
    assert worse.nfe == 4


def test_a_point_is_the_same_alone_and_in_a_batch_and_its_picture_holds_it() -> None:
    model = wrap(Classes(), predicts="x0", levels="edm", shape=(2,), labels=3)
    sampler = LoopSampler(model, "euler_a", guidance=CFG(2.0))
    together = sampler.sample(Unconditional(1), seeds=range(5), steps=5)
    alone = sampler.sample(Unconditional(1), seeds=[3], steps=5)
    torch.testing.assert_close(together.points[3:4], alone.points, atol=1e-6, rtol=0)
    assert together.latents.shape == (5, 2, 1, 1)
    assert torch.equal(points_of(together.images).float(), together.points)
    assert together.pictures["points"].size == (420, 420)


def test_pictures_text_and_decoder() -> None:
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        seen.append(context)
        return x * 0.0 + context.mean(dim=-1)[:, None, None, None]

    def text(sentences: list[str]) -> Tensor:
        return torch.tensor([[float(len(sentence)) / 10] * 4 for sentence in sentences])

    model = wrap(
        network,
        predicts="x0",
        levels="cosine",
        shape=(4, 8, 8),
        text=text,
        decode=lambda latents: latents[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3),
        encode=lambda pixels: torch.cat([pixels, pixels[:, :1]], 1)[:, :, ::2, ::2],
    )
    result = LoopSampler(model, "ddim", guidance=CFG(2.0)).sample(TextToImage(["12345", ""]), seeds=[0, 1], steps=3)
    assert [image.size for image in result.images] == [(16, 16)] * 2
    assert result.images[0].getpixel((3, 3)) == (255, 255, 255)
    assert result.images[1].getpixel((3, 3)) == (128, 128, 128)
    assert seen[0].shape == (4, 4)
    restored = LoopSampler(model, "ddim").sample(ImageToImage("", result.images[0], strength=0.5), seeds=[0], steps=4)
    assert restored.images[0].size == (16, 16)
    pixels = wrap(lambda x, t: x * 0.0, predicts="x0", levels="flow", shape=(3, 8, 8))
    assert LoopSampler(pixels).sample(Unconditional(), seeds=[0], steps=2).images[0].getpixel((0, 0)) == (128, 128, 128)


def test_levels_of_ones_own() -> None:
    trained = TrainedLevels(tuple(0.01 * 1.06**i for i in range(150)), 150)
    found = points(trained, "x0", "ve", steps=20, seeds=range(300), scheduler="heun")
    assert float(found.std()) == pytest.approx(STD, rel=0.1)
    grid = Levels((*(trained.at_sigma(s) for s in (20.0, 5.0, 1.0, 0.2)), trained.clean()), trained)
    assert torch.isfinite(points(grid, "epsilon", "vp", steps=4)).all()
    with pytest.raises(UserError, match="a grid of 4"):
        points(grid, "epsilon", "vp", steps=5)
    model = wrap(exact("x0", "vp"), predicts="x0", levels="edm", shape=(2,))
    with pytest.raises(UserError, match="parity"):
        LoopSampler(model, parity=True)


def test_the_hash_is_of_weights_or_of_the_source() -> None:
    def model(network):
        return wrap(network, predicts="x0", levels="flow", shape=(2,))

    class Net(nn.Linear):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x)

    torch.manual_seed(0)
    net = Net(2, 2)
    first = model(net).weights_sha256
    assert model(lambda x, t: net(x, t)).weights_sha256 == first  # a function around it
    with torch.no_grad():
        net.bias[0] += 1e-3
    assert model(net).weights_sha256 != first

    def times(factor: float):
        return lambda x, t: factor * x

    assert model(times(1.0)).weights_sha256 == model(times(1.0)).weights_sha256
    assert model(times(1.0)).weights_sha256 != model(times(2.0)).weights_sha256
    assert model(times(1.0)).weights_sha256 != model(lambda x, t: x).weights_sha256


GOOD = {"predicts": "x0", "levels": "flow", "shape": (2,)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"predicts": "eps"}, "predicts: found 'eps'. Did you mean 'epsilon'? Accepted: epsilon, x0"),
        ({"levels": "cosin"}, "levels: found 'cosin'. Did you mean 'cosine'?"),
        ({"levels": 7}, "levels: found 7. Accepted: cosine, linear, edm, flow"),
        ({"shape": (2, 2)}, "shape: found (2, 2); accepted is (channels, height, width), or (d,) for points."),
        ({"labels": 0}, "labels: found 0"),
        ({"labels": 2}, "takes no labels; accepted is one with an argument called labels or class_labels"),
        ({"told": "noise"}, "told: found 'noise'"),
        ({"scaling": "vpp"}, "scaling: found 'vpp'; accepted: vp, ve, flow."),
        ({"extent": (1, 1)}, "extent: found (1, 1)"),
        ({"decode": 3, "shape": (3, 8, 8)}, "decode: found 3"),
        ({"network": None}, "network: found None; accepted is a callable network(x, t, **told)"),
        ({"network": nn.Linear}, "network: found the class Linear"),
        ({"network": lambda x: x}, "(x) cannot be called as network(x, t): too many positional arguments."),
        ({"network": lambda x, t, c: x}, "cannot be called as network(x, t): missing a required argument: 'c'."),
        ({"network": lambda x, t: x[:, :1]}, "returned torch.float32 of [1, 1] for x [1, 2]; accepted is a tensor of floats"),
        ({"network": lambda x, t: None}, "returned NoneType for x [1, 2]"),
        ({"network": lambda x, t: x / 0}, "returned NaN or infinite numbers at stage 0, step 1 of 3"),
        ({"network": lambda x, t: x @ torch.ones(3, 3)}, "failed when it was called with x [1, 2], t [1]: RuntimeError: mat1"),
    ],
)  # fmt: skip
def test_errors_are_one_line(change, says: str) -> None:
    settings = {"network": lambda x, t: x, **GOOD, **change}

    def run() -> None:
        LoopSampler(wrap(settings.pop("network"), **settings)).sample(Unconditional(), seeds=[0], steps=3)

    with pytest.raises(UserError, match=re.escape(says)) as caught:
        run()
    assert "\n" not in str(caught.value)

"""What plugs keep of their making, and how they and results show themselves."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

import pytest
import yaml
from hydra.utils import instantiate
from PIL import Image

from research import Hook, LoopSampler, config_dir
from research.arguments import Recorded, arguments_of, described
from research.errors import UserError
from research.guidance import CFG, PAG, Interval, NoGuidance, Rescale
from research.hooks import LatentTransform, Shift
from research.progress_bar import ProgressBar
from research.sampling.result import SampleResult
from research.sigmas import Karras
from research.tasks import TextToImage


@pytest.fixture(scope="module")
def text_model():
    from research.testing.networks import tiny_text_model

    return tiny_text_model()


class Ramp(Hook):
    def __init__(self, to: float, *, by=0.5, names=("a",)):
        self.slope = [to * by for _ in names]


@dataclass(frozen=True)
class Frozen(Recorded):
    rho: float = 7.0


class Plain:
    def __init__(self, power: int = 2, kept: str = "yes"):
        self.power, self._kept = power, kept


class Lost:
    def __init__(self, power: int):
        self.squared = power**2


def test_arguments_are_those_given_and_what_was_set_since() -> None:
    cfg = CFG(3.0)
    assert arguments_of(cfg) == {"scale": 3.0}
    cfg.scale = 5.0
    assert arguments_of(cfg) == {"scale": 5.0}
    assert arguments_of(CFG()) == {}
    wrapped = Interval(CFG(5), steps=(0.2, 0.8))
    wrapped.scale = 2.0  # that of the guidance inside
    assert described(wrapped) == "Interval(CFG(2.0), steps=(0.2, 0.8))"
    assert arguments_of(Ramp(2.0, names=["x", "y"])) == {"to": 2.0, "names": ["x", "y"]}
    assert arguments_of(Karras(rho=5.0)) == {"rho": 5.0}
    assert arguments_of(Plain(3, kept="no")) == {"power": 3, "kept": "no"}
    assert arguments_of(Lost(3)) is None
    assert described(Lost(3)) == "Lost(...)"


@pytest.mark.parametrize("plug", [Interval(CFG(5), steps=(0.2, 0.8)), Ramp(1.0, by=2), Frozen(3.0)], ids=described)
def test_copies_keep_them(plug: object) -> None:
    for made in (copy.copy(plug), copy.deepcopy(plug), pickle.loads(pickle.dumps(plug))):
        assert described(made) == described(plug)
    assert described(CFG(3).with_scale(9.0)) == "CFG(9.0)"


def test_a_class_without_a_constructor_takes_nothing() -> None:
    with pytest.raises(TypeError, match="NoGuidance"):
        NoGuidance(3)
    assert described(NoGuidance()) == "NoGuidance()"
    assert "_constructed_with" not in vars(CFG(3))


@pytest.mark.parametrize(
    "file",
    sorted((config_dir() / "guidance").glob("*.yaml")) + sorted((config_dir() / "sigmas").glob("*.yaml")),
    ids=str,
)
def test_every_choice_is_made_again_of_its_arguments(file) -> None:
    node = {key: value for key, value in yaml.safe_load(file.read_text(encoding="utf-8")).items() if key != "name"}
    if "_target_" not in node or "???" in str(node) or file.stem in ("file", "list"):
        return
    plug = instantiate(node, _convert_="all")
    found = arguments_of(plug)
    assert found is not None
    assert described(type(plug)(**found)) == described(plug)


def test_long_arguments_are_cut_and_html_is_escaped() -> None:
    task = TextToImage("<b>" + "fox " * 50, negative_prompt="x")
    assert len(repr(task)) < 120
    assert "<b>fox" not in task._repr_html_()
    assert "&lt;b&gt;fox" in task._repr_html_()
    assert repr(LatentTransform(Shift(2), steps=[0.6, 0.7])) == "LatentTransform(Shift(2), steps=[0.6, 0.7])"
    assert repr(PAG(2, base=Rescale(CFG(5), phi=0.7))) == "PAG(2, base=Rescale(CFG(5), phi=0.7))"


def result(images: list[Image.Image]) -> SampleResult:
    import torch

    seeds = list(range(len(images)))
    costs = {"nfe": 10, "nfe_by_branch": {"cond": 5, "uncond": 5}, "timings": {"denoise": 1.5, "load": 9.0}}
    return SampleResult(images, torch.zeros(len(images), 4, 2, 2), seeds, ["<fox>"] * len(images), **costs)


def test_a_result_shows_its_pictures_enlarged_with_their_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    found = result([Image.new("RGB", (32, 32), (200, 10, 10)), Image.new("RGB", (32, 16)), Image.new("L", (8, 32))])
    assert repr(found) == "SampleResult(3 images of 8 x 32, 32 x 16, 32 x 32, seeds 0-2, 10 NFE an image, 1.50 s)"
    whole = found.grid()
    assert whole.size == (2 * 128 + 4, 2 * 128 + 4)
    assert whole.getpixel((64, 64)) == (200, 10, 10)
    assert whole.getpixel((129, 64)) == (255, 255, 255)  # between two
    assert found.grid(columns=3, side=32).size == (3 * 32 + 8, 32)
    page = found._repr_html_()
    assert page.count("<img") == 3
    assert "width='128' height='64'" in page
    assert "0: &lt;fox&gt;" in page
    assert "10 (cond 5, uncond 5)" in page
    seen = []
    monkeypatch.setattr(Image.Image, "show", lambda image: seen.append(image.size))
    found.show()
    assert seen == [whole.size]
    with pytest.raises(UserError, match="no images"):
        result([]).grid()


def test_a_large_picture_is_made_smaller_for_the_page() -> None:
    page = result([Image.effect_noise((1024, 512), 50)])._repr_html_()
    assert "width='128' height='64'" in page
    assert len(page) < 100_000


def test_models_and_samplers_show_themselves(text_model) -> None:
    sampler = LoopSampler(text_model, "ddim", guidance=CFG(3), hooks=[LatentTransform(Shift(2), steps=[0.6, 0.7])])
    assert "M parameters, latents 4x" in repr(text_model)
    assert repr(sampler) == (
        f"LoopSampler({text_model!r}, scheduler=ddim, guidance=CFG(3), "
        "hooks=LatentTransform(Shift(2), steps=[0.6, 0.7]))"
    )
    assert "float32 on cpu" in text_model._repr_html_()
    assert "CFG(3)" in sampler._repr_html_()


def test_the_bar_counts_the_steps_of_all_batches_and_is_off_by_one_argument(
    text_model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[tuple[int, int]] = []
    close = ProgressBar.close
    monkeypatch.setattr(ProgressBar, "close", lambda bar: (made.append((bar._bar.n, bar._bar.total)), close(bar)))
    monkeypatch.setattr("research.progress_bar.somebody_looks", lambda: True)
    sampler, task = LoopSampler(text_model, "ddim"), TextToImage("fox")
    plain = sampler.sample(task, seeds=iter([0, 1, 2]), steps=4, batch_size=2)
    assert made == [(8, 8)]
    sampler.sample(task, seeds=[0], steps=2, progress=False)
    assert made == [(8, 8)]
    told = []
    again = sampler.sample(task, seeds=[0, 1, 2], steps=4, batch_size=2, progress=lambda *step: told.append(step[:2]))
    assert told[-1] == (4, 4)
    assert made == [(8, 8)]
    assert plain.latents.equal(again.latents)

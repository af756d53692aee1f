from __future__ import annotations

import json

import pytest
import torch
from support.metric_samples import pictures
from transformers.models.clip import image_processing_pil_clip

from research.errors import ConfigError
from research.image_tensors import Preprocess, batches, stack, to_uint8


@pytest.mark.parametrize(
    "config",
    [
        {"size": {"height": 32, "width": 32}, "do_center_crop": False},
        {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
        {"size": {"height": 17, "width": 23}, "do_center_crop": False, "resample": 2},
        {"do_resize": False, "do_center_crop": False, "do_normalize": False},
    ],
)
@pytest.mark.parametrize("size", [(40, 33), (64, 64), (31, 50)])
def test_same_pixels_as_transformers_processor(tmp_path, config, size):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(config))
    images = pictures(3, seed=0, size=size)
    theirs = image_processing_pil_clip.CLIPImageProcessorPil(**config)(images, return_tensors="pt")["pixel_values"]
    ours = Preprocess.from_config(file)(stack(images))
    torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=0)


def test_ranges_are_checked():
    uint8 = stack(pictures(2, seed=1))
    assert torch.equal(to_uint8(uint8), uint8)
    assert torch.equal(to_uint8(uint8.float() / 255), uint8)
    for bad in (uint8.float() / 127.5 - 1, uint8.float(), torch.full((1, 3, 4, 4), torch.nan), uint8.long()):
        with pytest.raises(ConfigError, match=r"accepted is uint8"):
            to_uint8(bad)
    with pytest.raises(ConfigError, match=r"\[N, 3, H, W\]"):
        to_uint8(uint8[:, :1])


def test_batches_hold_one_image_size_each():
    images = [*pictures(3, seed=2), *pictures(2, seed=3, size=(16, 16))]
    assert [tuple(b.shape) for b in batches(images, 2)] == [(2, 3, 32, 40), (1, 3, 32, 40), (2, 3, 16, 16)]


@pytest.mark.parametrize("content", ["not json", '{"size": {"longest_edge": 3}}'])
def test_unusable_config_is_one_clear_line(tmp_path, content):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json") as raised:
        Preprocess.from_config(file)
    assert "\n" not in str(raised.value)

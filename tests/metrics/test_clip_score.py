from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from support.metric_samples import MAX_TOKENS, pictures
from torchmetrics.functional.multimodal import clip_score
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from research.clip import load_clip
from research.errors import ConfigError
from research.image_tensors import stack
from research.metrics import CLIPScore

PROMPTS = ["a fox", "a cup on red", "a fox", "sea & sky", "x", "été à la mer"]


class _BareOutputs:
    """The same model, giving the bare tensors that torchmetrics 1.9 expects of transformers 4."""

    def __init__(self, clip):
        self.clip = clip
        self.config = clip.model.config

    def to(self, device):
        return self

    def get_image_features(self, pixels):
        return self.clip.model.get_image_features(pixel_values=pixels).pooler_output

    def get_text_features(self, ids, mask):
        return self.clip.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output


def torchmetrics_score(clip, directory, images, prompts) -> float:
    image_processor = CLIPImageProcessorPil.from_pretrained(directory)

    def processor(text=None, images=None, return_tensors="pt", padding=True):
        if text is not None:
            return clip.tokenizer(list(text), return_tensors=return_tensors, padding=padding)
        return image_processor(images, return_tensors=return_tensors, input_data_format="channels_first")

    pixels = list(stack(images))
    return float(clip_score(pixels, prompts, lambda: (_BareOutputs(clip), processor)))


def test_equals_torchmetrics_on_the_same_embeddings(tiny_clip):
    images = pictures(6, seed=0)
    clip = load_clip(tiny_clip)
    result = CLIPScore(tiny_clip).compute(images, PROMPTS, device="cpu")
    per_image = result.info["per_image"]
    # torchmetrics cuts the mean at zero and we cut each score, so compare on the pairs that are not negative
    keep = [i for i, score in enumerate(per_image) if score > 0]
    assert len(keep) >= 2
    ours = CLIPScore(tiny_clip).compute([images[i] for i in keep], [PROMPTS[i] for i in keep], device="cpu")
    theirs = torchmetrics_score(clip, tiny_clip, [images[i] for i in keep], [PROMPTS[i] for i in keep])
    assert ours.values["clip_score"] == pytest.approx(theirs, abs=1e-3)


def test_mean_and_standard_error_over_images(tiny_clip):
    result = CLIPScore(tiny_clip).compute(pictures(6, seed=0), PROMPTS, device="cpu")
    scores = torch.tensor(result.info["per_image"], dtype=torch.float64)
    assert (scores >= 0).all()
    assert result.values["clip_score"] == pytest.approx(scores.mean().item(), abs=1e-4)
    assert result.values["clip_score_se"] == pytest.approx(scores.std().item() / math.sqrt(6), abs=1e-4)
    assert result.info["n_prompts"] == 5
    json.dumps(result.info, allow_nan=False)
    one = CLIPScore(tiny_clip).compute(pictures(1, seed=0), PROMPTS[:1], device="cpu")
    assert set(one.values) == {"clip_score"}


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_batch_size_does_not_matter(tiny_clip, batch_size):
    images = pictures(7, seed=4)
    whole = CLIPScore(tiny_clip, batch_size=7).compute(images, ["a fox"] * 7, device="cpu")
    parts = CLIPScore(tiny_clip, batch_size=batch_size).compute(images, ["a fox"] * 7, device="cpu")
    assert parts.info["per_image"] == pytest.approx(whole.info["per_image"], abs=1e-3)


def test_long_prompts_keep_their_end_token_and_are_recorded(tiny_clip):
    clip = load_clip(tiny_clip)
    fits, long = "a " * (MAX_TOKENS - 2), "a " * 200
    assert clip.max_tokens == MAX_TOKENS
    assert clip.truncated([fits, long, long]) == [long]
    # the end token is where the sentence is read: cut after it, the long prompt is the one that just fits
    torch.testing.assert_close(clip.embed_texts([long]), clip.embed_texts([fits]))
    result = CLIPScore(tiny_clip).compute(pictures(2, seed=0), [fits, long], device="cpu")
    assert result.info["truncated_prompts"] == 1
    assert "1 of 2 prompts" in result.info["warnings"][0]


def test_images_without_prompts_get_no_score(tiny_clip):
    result = CLIPScore(tiny_clip).compute(pictures(2, seed=0), ["", ""], device="cpu")
    assert result.values == {}
    assert "no prompts" in result.info["warnings"][0]


def test_bad_settings_are_one_clear_line(tiny_clip, tmp_path):
    for metric, pattern in (
        (CLIPScore("emoji-evil"), r"metrics.clip_score.model: 'emoji-evil' does not exist"),
        (CLIPScore(str(tmp_path)), r"no config.json"),
        (CLIPScore(None), r"found None"),
        (CLIPScore(tiny_clip, batch_size=0), r"metrics.clip_score.batch_size: found 0"),
    ):
        with pytest.raises(ConfigError, match=pattern) as raised:
            metric.check(n_images=4)
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="one prompt an image"):
        CLIPScore(tiny_clip).compute(pictures(2, seed=0), ["a"], device="cpu")


def test_broken_and_pickled_weights_are_refused(tiny_clip, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_clip, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="broken cannot be read as a CLIPModel"):
        load_clip(str(broken))
    weights.rename(broken / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pickled weights are not read"):
        load_clip(str(broken))


def test_checking_imports_neither_torch_nor_transformers(tiny_clip):
    code = (
        "import sys; from research.metrics import FID, CLIPScore\n"
        f"CLIPScore({tiny_clip!r}).check(n_images=2)\n"
        f"FID({tiny_clip!r})\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'torchmetrics', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

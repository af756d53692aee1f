"""Words keep their numbers: a tokenizer is built once for a work folder and then read from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

from research.zoo import ZOO_DIR
from tools.zoo.clip import build_tokenizer, caption_ids, keep_tokenizer, load_tokenizer

SCRIPT = """
import sys
from pathlib import Path
import torch
from tools.zoo.clip import caption_ids, load_tokenizer
torch.save(caption_ids(load_tokenizer(Path(sys.argv[1]))), sys.argv[2])
"""


@pytest.mark.slow
def test_another_process_reads_the_same_numbers(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    keep_tokenizer(tokenizer, tmp_path)
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), str(tmp_path / "ids.pt")], check=True)
    assert torch.equal(torch.load(tmp_path / "ids.pt", weights_only=True), caption_ids(tokenizer))
    for text in ("pie on a blue background", "naïve 🍕 «zxq»", ""):
        assert load_tokenizer(tmp_path)(text).input_ids == tokenizer(text).input_ids
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_without_one_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^no tokenizer\.json in .*: train the stage"):
        load_tokenizer(tmp_path)


def test_every_subject_has_words_of_its_own() -> None:
    ids = caption_ids(CLIPTokenizer.from_pretrained(ZOO_DIR / "emoji" / "tokenizer"))
    assert len({tuple(row.tolist()) for row in ids[:, 0, 0]}) == len(ids)


def test_a_pig_is_no_pie() -> None:
    """Two words that once had each other's numbers: pigs are pink, so bluer in the middle than pies are."""
    pipeline = StableDiffusionPipeline.from_pretrained(ZOO_DIR / "emoji")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    images = pipeline(
        ["pig face on a green background", "pie on a green background"],
        generator=[torch.Generator().manual_seed(seed) for seed in (2, 3)],
        num_inference_steps=12,
        guidance_scale=3.0,
        output_type="np",
    ).images
    pig, pie = images[:, 8:24, 8:24, 2].mean(axis=(1, 2))
    assert pig > pie + 0.15

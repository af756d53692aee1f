"""What the tests score with: a genuine CLIPModel directory with random weights, and random pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

MAX_TOKENS = 16


def build_tiny_clip(directory: Path, *, seed: int = 0, size: int = 32, dimension: int = 24) -> Path:
    """Writes config, weights, a character-level tokenizer and the image processor's config."""
    torch.manual_seed(seed)
    letters = [chr(c) for c in range(33, 127)]
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=MAX_TOKENS)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **tower,
        "vocab_size": len(vocab),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": vocab["<|startoftext|>"],
        "eos_token_id": vocab["<|endoftext|>"],
        "pad_token_id": vocab["<|endoftext|>"],
    }
    vision = {**tower, "image_size": size, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=dimension)
    model = CLIPModel(config)
    with torch.no_grad():  # the standard initialisation is so small that every image would embed alike
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    processor = {
        "do_resize": True,
        "size": {"height": size, "width": size},
        "do_center_crop": False,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "image_processor_type": "CLIPImageProcessor",
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory


def pictures(n: int, seed: int, *, size: tuple[int, int] = (40, 32), shift: float = 0.0) -> list[Image.Image]:
    """Smooth random pictures (width, height), brighter by `shift`."""
    rng = np.random.default_rng(seed)
    coarse = np.clip(rng.uniform(0, 255, (n, 5, 5, 3)) + 255 * shift, 0, 255).astype(np.uint8)
    return [Image.fromarray(c).resize(size, Image.Resampling.BICUBIC) for c in coarse]


def texts_and_pictures_of(clip: str) -> torch.Tensor:
    """Vectors of two sentences and two pictures, by a CLIP model's directory."""
    from research.image_tensors import stack
    from research.metrics.extractors.clip import load_clip_features

    features = load_clip_features(clip)
    return torch.cat([features.clip.embed_texts(["a fox", "an owl"]), features(stack(pictures(2, seed=1)))])

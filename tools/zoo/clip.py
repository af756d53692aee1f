"""The two CLIP models: one whose text tower conditions the UNet, and one with another seed that only evaluates."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from tools.zoo.data import COLOURS, RESOLUTION, SETS, SUBJECTS, Emoji, caption, pairs
from tools.zoo.training import Loss, Recipe, fit, load_ema

BATCH = 128
MAX_TOKENS = 16
WIDTH = 128
TOKENIZER_FILE = "tokenizer.json"  # beside the checkpoints; both CLIP models of a work folder use it
START, END = "<|startoftext|>", "<|endoftext|>"
RECIPE = Recipe(steps=800, lr=2e-3, seed=21, weight_decay=0.05, betas=(0.9, 0.98), ema=0.99)
EVAL_RECIPE = Recipe(steps=500, lr=2e-3, seed=91, weight_decay=0.05, betas=(0.9, 0.98), ema=0.99)
MODELS = {"clip": RECIPE, "eval": EVAL_RECIPE}


def build_tokenizer() -> CLIPTokenizer:
    """A byte-level BPE trained on the captions; any text can be written in it, words of the captions in one token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    every = (caption(s, b, style) for s in range(len(SUBJECTS)) for b in range(len(COLOURS)) for style in (None, 0, 1))
    trained.train_from_iterator(every, trainer)
    merges: Any = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    words = [*alphabet, *(f"{char}</w>" for char in alphabet), *("".join(pair) for pair in merges), START, END]
    vocab = {word: index for index, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def load_tokenizer(work: Path) -> CLIPTokenizer:
    """The tokenizer of a work folder.

    Building it again does not do: pieces that are equally frequent come in another order in each process, and a word
    whose number has changed is another word to the models trained before.
    """
    path = Path(work) / TOKENIZER_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no {TOKENIZER_FILE} in {work}: train the stage 'clip' or 'eval' first")
    model = json.loads(path.read_text())
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=MAX_TOKENS)


def keep_tokenizer(tokenizer: CLIPTokenizer, work: Path) -> None:
    """Write a tokenizer for `load_tokenizer`, all of the file or nothing."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    scratch = Path(work) / f"{TOKENIZER_FILE}.tmp"
    scratch.write_text(json.dumps({"vocab": model["vocab"], "merges": model["merges"]}))
    os.replace(scratch, Path(work) / TOKENIZER_FILE)


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids["pad_token_id"] = tokenizer.pad_token_id
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "projection_dim": WIDTH,
        **ids,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": RESOLUTION,
        "patch_size": 4,
        "projection_dim": WIDTH,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH, **ids))


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids [N, 16], padded; the end token is kept when a text is cut."""
    return tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt").input_ids


def caption_ids(tokenizer: CLIPTokenizer) -> Tensor:
    """Token ids [subjects, backgrounds, 2 + sets, 16]: the caption, the short one, then the ones that name a set."""
    variants = ((None, False), (None, True), *((style, False) for style in range(len(SETS))))
    texts = [caption(s, b, *v) for s in range(len(SUBJECTS)) for b in range(len(COLOURS)) for v in variants]
    return tokenize(tokenizer, texts).view(len(SUBJECTS), len(COLOURS), len(variants), MAX_TOKENS)


def random_variant(style: Tensor, generator: torch.Generator) -> Tensor:
    """Which of `caption_ids`' variants to use for pictures of the given sets [N]: half of them name their set."""
    names_set = torch.randint(2, style.shape, generator=generator).bool()
    return torch.where(names_set, style + 2, torch.randint(2, style.shape, generator=generator))


def _contrastive(emoji: Emoji, ids: Tensor) -> Loss:
    table = torch.tensor(pairs(held_out=False))

    def loss(model: Any, generator: torch.Generator) -> Tensor:
        # no pair twice in a batch: the second would count as a wrong answer to the first
        chosen = table[torch.randperm(len(table), generator=generator)[:BATCH]]
        pictures, style = emoji.batch(chosen, generator)
        tokens = ids[chosen[:, 0], chosen[:, 1], random_variant(style, generator)]
        output = model(input_ids=tokens, pixel_values=pictures)
        logits = output.logits_per_image.float()
        target = torch.arange(BATCH)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    return loss


def train_clip(emoji: Emoji, work: Path, name: str, recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    if not (Path(work) / TOKENIZER_FILE).is_file():
        keep_tokenizer(build_tokenizer(), work)
    tokenizer = load_tokenizer(work)
    fit(name, build_clip(tokenizer), _contrastive(emoji, caption_ids(tokenizer)), recipe, work)


def load_clip(work: Path, name: str) -> tuple[CLIPModel, CLIPTokenizer]:
    """The trained model `name` ("clip" or "eval") with its EMA weights, and its tokenizer."""
    tokenizer = load_tokenizer(work)
    return load_ema(build_clip(tokenizer), work, name), tokenizer

"""The command that makes a job, or one of its images alone, again."""

from __future__ import annotations

import re
import shlex

from research.results.read import Row

# what a single image does not need, or what is set anew for it
_REPLACED = re.compile(
    r"^[+~]*(prompts|prompt_set|seed|images_per_prompt|output_dir|sweep_name|tracker|metrics|batch_size|resume|retry|on_failure|sweep|hydra|runtime)\b"
)
ALONE = "images_per_prompt=1 metrics=none tracker=none sweep_name=again"


def job_command(row: Row) -> str:
    """The whole job, to be kept in a folder of whoever runs it."""
    return " ".join(["research", *(_word(o) for o in _overrides(row) if not o.startswith("output_dir="))])


def image_prefix(row: Row) -> str:
    """The beginning of the command for one image; prompt, seed and `ALONE` follow."""
    return " ".join(["research", *(_word(o) for o in _overrides(row) if not _REPLACED.match(o))])


def prompt_word(prompt: str) -> str:
    """A prompt as an override, quoted for Hydra's grammar and for the shell; empty where the image has none."""
    if not prompt:
        return ""
    # a backslash counts only before a quote; what would be an interpolation is kept as text
    text = re.sub(r'(\\*)"', lambda m: m[1] * 2 + '\\"', prompt)
    text = re.sub(r"(\\+)$", r"\1\1", text).replace("${", "\\${")
    return shlex.quote(f'prompts=["{text}"]')


def image_command(row: Row, prompt: str, seed: int) -> str:
    """One image: the same prompt and seed under the same settings, without scoring it."""
    return " ".join(p for p in (image_prefix(row), prompt_word(prompt), f"seed={seed}", ALONE) if p)


def _overrides(row: Row) -> list[str]:
    found = row.record.get("overrides")
    return [str(o) for o in found] if isinstance(found, (list, tuple)) else []


def _word(override: str) -> str:
    return shlex.quote(override)

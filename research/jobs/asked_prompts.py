"""Which prompts a composed config asks for: its own, or those of ``prompts_file``, each in the forms that ``wildcards`` give it.

This is settled before a job has an id: what a job keeps, and is named by, are the sentences themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from research.errors import ConfigError
from research.jobs.prompt_files import PromptRow, read_prompts
from research.jobs.wildcards import Wildcards

OF_PROMPTS = ("prompts_file", "wildcards")  # keys that say where prompts come from, and that no job keeps


@dataclass
class AskedPrompts:
    """Prompts of one job.

    Attributes:
        settings: overrides that their rows have in common.
        rows: each with one sentence to be drawn.
    """

    settings: tuple[str, ...] = ()
    rows: list[PromptRow] = field(default_factory=list)


def asked_prompts(config: Mapping[str, Any]) -> list[AskedPrompts] | None:
    """The prompts of a config, those with the same settings together; None where the config's own list is all there is to it.

    Raises:
        ConfigError: the file, or a wildcard, cannot be read.
    """
    path, wildcards = config.get("prompts_file"), Wildcards.of(config.get("wildcards"))
    if path is not None and (not isinstance(path, str) or not path.strip()):
        raise ConfigError(f"prompts_file: found {path!r}; accepted is a file .txt, .csv, .jsonl, or null.")
    own = config.get("prompts")
    if path is None and (wildcards.expand == "none" or not isinstance(own, list)):
        return None
    rows = read_prompts(path) if path is not None else [PromptRow(text) for text in own or () if isinstance(text, str)]
    if path is None and len(rows) < len(own or ()):
        return None  # what is no text is refused where prompts are checked
    found: dict[tuple[str, ...], AskedPrompts] = {}
    for row, forms in zip(rows, wildcards.forms([row.prompt for row in rows]), strict=True):
        group = found.setdefault(row.settings, AskedPrompts(row.settings))
        group.rows += [PromptRow(text, row.negative, row.seed, row.settings) for text in forms]
    return list(found.values())


def with_prompts(config: Mapping[str, Any], asked: AskedPrompts) -> dict[str, Any]:
    """The config of a job with these prompts, their negative prompts and seeds, in the place of where they come from."""
    rows, each = asked.rows, config.get("images_per_prompt")
    count = each if isinstance(each, int) and not isinstance(each, bool) and each > 0 else 1
    found = {**config, "prompts": [row.prompt for row in rows], "prompts_file": None, "wildcards": None}
    if any(row.seed is not None for row in rows):
        base = config.get("seed")
        first = base if isinstance(base, int) and not isinstance(base, bool) else 0
        found["seeds"] = [first + k * count if row.seed is None else row.seed for k, row in enumerate(rows)]
    if any(row.negative is not None for row in rows) and isinstance(config.get("task"), Mapping):
        common = config["task"].get("negative_prompt")
        common = common if isinstance(common, str) else ""
        texts = [common if row.negative is None else row.negative for row in rows]
        # one an image, as the tasks have it
        told = texts[0] if len(set(texts)) == 1 else [text for text in texts for _ in range(count)]
        found["task"] = {**config["task"], "negative_prompt": told}
    return found


def one_job(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with its prompts in their place, for who makes one job of it.

    Raises:
        ConfigError: its prompts are several jobs; else see `asked_prompts`.
    """
    groups = asked_prompts(config)
    if groups is None:
        return dict(config)
    if len(groups) > 1 or groups[0].settings:
        raise several(config, groups)
    return with_prompts(config, groups[0])


def several(config: Mapping[str, Any], groups: Sequence[AskedPrompts]) -> ConfigError:
    """The refusal of prompts whose settings differ, where one job is to be made."""
    keys = list(dict.fromkeys(line.partition("=")[0] for group in groups for line in group.settings))
    return ConfigError(
        f"prompts_file: the rows of {config.get('prompts_file')} have settings of their own ({', '.join(keys)}), so that they "
        f"are {len(groups)} jobs; start a sweep, research -m."
    )

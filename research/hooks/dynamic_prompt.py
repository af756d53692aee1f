"""Prompts that change over the steps, and words with weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from research.checks import check_number
from research.errors import ConfigError
from research.hooks.emphasis import Emphasis, emphases, emphasised, token_places
from research.sampling.interfaces import Condition, Hook, Run, StepState

KEY = "hooks.dynamic_prompt"
PROMPT, NEGATIVE = "{prompt}", "{negative_prompt}"
Keys = list[tuple[float, str]]  # where a sentence begins, in parts of the steps, and the sentence


class DynamicPrompt(Hook):
    """Other sentences in other parts of the user's steps, with any guidance that reads the conditions of the stage.

    Early steps settle where things are and their colours, late ones the details, so ``[{prompt: pizza, until: 0.8}, {prompt:
    watermelon}]`` draws a watermelon where the pizza was laid out. (Prompt-to-prompt, arXiv:2208.01626, section 3.2, swaps and
    weights words by the attention maps up to such a step; here the text embeddings change.)
    In a sentence ``{prompt}`` stands for the job's own prompt of each image and ``{negative_prompt}`` for its negative one, so
    that it works over a set of prompts. Sentences are encoded when a guidance first asks for them.

    Args:
        prompts: one sentence; a list of ``{prompt: ..., until: fraction}``; or a mapping of fractions where sentences begin,
            ``{0.0: ..., 0.4: ...}``. Step ``k`` of ``n``, from 0, is before ``until`` if ``k / n < until``. The last may do
            without ``until``; what is left out before and after is the job's own prompt.
        negative: the same for the negative prompt.
        blend: move from each sentence to the next one linearly in the embeddings, reaching it where it begins, instead of
            switching there.
        weights: ``{words: weight}`` or ``{words: {weight: ..., steps: [lo, hi]}}``; a token's embedding ``z`` becomes
            ``e + weight * (z - e)``, ``e`` that of the empty sentence in its place: from 0 (as if it were not there) over 1 (as
            it is) to more.
        negative_weights: the same for words of the negative prompt.

    Raises:
        ConfigError: nothing to do, no sentence, fractions out of order or range, a weight that is none, words that occur in no
            prompt of the job, a model or task without text, or a negative prompt of the task that would go unused.
    """

    order = -100
    requires: frozenset[str] = frozenset({"text"})
    claims = frozenset({"prompt"})

    def __init__(
        self,
        prompts: Any = None,
        negative: Any = None,
        blend: bool = False,
        weights: Mapping[str, Any] | None = None,
        negative_weights: Mapping[str, Any] | None = None,
    ):
        if prompts is None and negative is None and not weights and not negative_weights:
            raise ConfigError(f"{KEY}: found neither prompts, negative nor weights; accepted is at least one.")
        self.courses = {
            "cond": _Course(
                "prompts", keys_of(f"{KEY}.prompts", prompts, PROMPT), emphases(f"{KEY}.weights", weights), blend
            ),
            "uncond": _Course(
                "negative",
                keys_of(f"{KEY}.negative", negative, NEGATIVE),
                emphases(f"{KEY}.negative_weights", negative_weights),
                blend,
            ),
        }
        if weights or negative_weights:
            self.requires = self.requires | {"word-places"}
        self.given = {
            "cond": prompts is not None or bool(weights),
            "uncond": negative is not None or bool(negative_weights),
        }

    def on_start(self, run: Run) -> None:
        for name, own in (("cond", PROMPT), ("uncond", NEGATIVE)):
            self.courses[name].start(run, name, own)
        task_negative = run.task.negative_prompt
        keys = self.courses["uncond"].keys
        if task_negative and not any(NEGATIVE in text for _, text in keys):
            raise ConfigError(
                f"{KEY}.negative: found beside task.negative_prompt, which it leaves no place for; accepted is one of "
                f"them, or {NEGATIVE} in a sentence."
            )

    def pre_step(self, state: StepState) -> None:
        part = state.stage.step / state.stage.n_steps
        makers = {
            name: (lambda course=course: course.at(state, part))
            for name, course in self.courses.items()
            if self.given[name]
        }
        state.conditions = Overlay(state.conditions, makers)

    def on_end(self, run: Run) -> None:
        for name, key in (("cond", "prompts"), ("uncond", "negative")):
            if self.given[name] and not self.courses[name].asked:
                run.warn(f"{KEY}.{key}: not used, because this guidance makes no such prediction.")


class _Course:
    """The sentences of one condition over the steps."""

    def __init__(self, key: str, keys: Keys, weights: list[Emphasis], blend: bool):
        self.key, self.keys, self.weights, self.blend = f"{KEY}.{key}", keys, weights, blend
        self.asked = False

    def start(self, run: Run, name: str, own: str) -> None:
        """Forget the run before, and see that all words with weights occur."""
        self.run, self.name, self.own = run, name, own
        if run.rows[0] == 0:
            self.asked = False
        self._made: dict[Any, Condition] = {}
        texts = (
            {text for _, sentence in self.keys for text in self._texts(sentence, all_rows=True)} if self.weights else ()
        )
        for one in self.weights:
            one.window.warn_if_empty(run)
            if not any(token_places(run.model.text, text, one.words) for text in texts):
                raise ConfigError(
                    f"{one.key}: the words occur in no prompt of this job; accepted are words of {self.key}."
                )

    def at(self, state: StepState, part: float) -> Condition:
        """The condition at a part of the steps, the same object as long as nothing changes."""
        self.asked = True
        active = [one for one in self.weights if state.stage in one.window]
        mix = self._mix(part)
        key = (tuple(mix), tuple(one.key for one in active))
        if key not in self._made:
            conditions = [self._weighted(text, active) for text, _ in mix]
            self._made[key] = conditions[0] if len(mix) == 1 else _between(conditions, mix[1][1])
        return self._made[key]

    def _mix(self, part: float) -> list[tuple[str, float]]:
        """One sentence, or two with the share of each."""
        place = max(k for k, (start, _) in enumerate(self.keys) if start <= part)
        start, text = self.keys[place]
        if not self.blend or place + 1 == len(self.keys) or part == start:
            return [(text, 1.0)]
        end, following = self.keys[place + 1]
        share = (part - start) / (end - start)
        return [(text, 1.0 - share), (following, share)]

    def _weighted(self, sentence: str, active: Sequence[Emphasis]) -> Condition:
        key = (sentence, tuple(one.key for one in active))
        if key in self._made:
            return self._made[key]
        plain = self._condition(sentence)
        if not active or plain.embeds is None:
            self._made[key] = plain
            return plain
        empty = self._of_task("").embeds
        assert empty is not None
        texts, encoder = self._texts(sentence), self.run.model.text
        self._made[key] = replace(plain, embeds=emphasised(plain.embeds, empty, texts, active, encoder))
        return self._made[key]

    def _condition(self, sentence: str) -> Condition:
        if sentence == self.own:
            return self.run.conditions[self.name]
        if PROMPT in sentence or NEGATIVE in sentence:
            return self._of_task(self._texts(sentence, all_rows=True))
        return self._of_task(sentence)

    def _of_task(self, texts: str | list[str]) -> Condition:
        negative = (
            {"negative": True} if self.name == "uncond" else {}
        )  # a task of somebody else's may know no such argument
        return self.run.task.condition(self.run, texts, **negative)

    def _texts(self, sentence: str, *, all_rows: bool = False) -> list[str]:
        """A sentence with the job's own prompts in it: one an image of the batch, or of the job."""
        rows = range(self.run.n_images) if all_rows else self.run.rows
        if sentence == self.own and self.name == "cond" and self.run.task.prompts is None:
            return [""] * len(rows)
        filled = [sentence] * len(rows)
        for holder, own in ((PROMPT, self.run.task.prompts), (NEGATIVE, self.run.task.negative_prompt or "")):
            if holder not in sentence:
                continue
            if own is None:
                raise ConfigError(f"{self.key}: found {holder} in {sentence!r}; this task has no prompts.")
            each = [own if isinstance(own, str) else own[row] for row in rows]
            filled = [text.replace(holder, mine) for text, mine in zip(filled, each, strict=True)]
        return filled


class Overlay(Mapping[str, Condition]):
    """Conditions of which some are replaced, made when they are asked for."""

    def __init__(self, base: Mapping[str, Condition], makers: Mapping[str, Callable[[], Condition]]):
        self._base, self._makers = base, makers

    def __getitem__(self, name: str) -> Condition:
        return self._makers[name]() if name in self._makers else self._base[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers or name in self._base

    def get(self, name: str, default: Any = None) -> Any:
        known = name in self  # the task's conditions complain of names that they do not have
        return self[name] if known else default

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._base, *self._makers]))

    def __len__(self) -> int:
        return len({*self._base, *self._makers})


def keys_of(key: str, given: Any, own: str) -> Keys:
    """Where each sentence begins, in order, from 0; see `DynamicPrompt`. ``own`` fills what is left out.

    Raises:
        ConfigError: no sentences, or fractions out of order or range.
    """
    if given is None:
        return [(0.0, own)]
    if isinstance(given, str):
        return [(0.0, given)]
    if not isinstance(given, Mapping | list | tuple) or not given:
        found = "an empty list" if isinstance(given, Mapping | list | tuple) else repr(given)
        raise ConfigError(
            f"{key}: found {found}; accepted is a sentence, a list of {{prompt: ..., until: ...}}, or {{0.0: ..., 0.4: ...}}."
        )
    keys = _of_mapping(key, given) if isinstance(given, Mapping) else _of_list(key, given, own)
    return keys if keys[0][0] == 0.0 else [(0.0, own), *keys]


def _of_mapping(key: str, given: Mapping[Any, Any]) -> Keys:
    keys: Keys = []
    for start, text in given.items():
        try:
            number = float(start)
        except (TypeError, ValueError):
            raise ConfigError(f"{key}: found {start!r}; accepted are fractions of the steps from 0 to 1.") from None
        check_number(key, number, least=0.0, most=1.0)
        if keys and number <= keys[-1][0]:
            raise ConfigError(f"{key}: found {number:g} after {keys[-1][0]:g}; accepted are fractions in rising order.")
        keys.append((number, _sentence(f"{key}.{start}", text)))
    return keys


def _of_list(key: str, given: Sequence[Any], own: str) -> Keys:
    keys: Keys = []
    start = 0.0
    for place, entry in enumerate(given):
        where, last = f"{key}[{place}]", place + 1 == len(given)
        if not isinstance(entry, Mapping) or "prompt" not in entry or entry.keys() - {"prompt", "until"}:
            raise ConfigError(f"{where}: found {entry!r}; accepted is {{prompt: ..., until: fraction}}.")
        keys.append((start, _sentence(f"{where}.prompt", entry["prompt"])))
        until = entry.get("until")
        if until is None:
            if not last:
                raise ConfigError(f"{where}.until: must be given; only the last sentence lasts to the end without it.")
            return keys
        until = check_number(f"{where}.until", until, least=0.0, most=1.0)
        if until <= start:
            raise ConfigError(
                f"{where}.until: found {until:g} after {start:g}; accepted are fractions in rising order."
            )
        start = until
    return keys if start == 1.0 else [*keys, (start, own)]


def _sentence(key: str, text: Any) -> str:
    if not isinstance(text, str):
        raise ConfigError(f"{key}: found {text!r}; accepted is a sentence.")
    return text


def _between(pair: Sequence[Condition], share: float) -> Condition:
    """The first condition with its text moved linearly towards the second's."""
    first, second = pair
    return first.mixed(second, lambda a, b: a + share * (b - a))

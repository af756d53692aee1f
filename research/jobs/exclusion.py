"""Rules that leave points out of a sweep: ``scheduler=heun and steps<5``, or ``{scheduler: heun, steps: [1, 2]}``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from research.errors import ConfigError, nearest
from research.jobs import overrides as lines_of

Lookup = Callable[[str], Any]  # the value of a key at a point; MISSING where it has none
Test = Callable[[Lookup], bool]
MISSING = object()
_MOST_VALUES = 1000  # of a key, that are remembered
GRAMMAR = "conditions key=value (also !=, <, <=, >, >=, in [a,b]) joined by and, or, not and brackets"

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"[^"]*"|'[^']*')|(?P<op><=|>=|!=|==|=|<|>)|(?P<mark>[()\[\],])|(?P<word>[^\s()\[\],=<>!"']+))"""
)
_KEY = re.compile(r"^[A-Za-z_][\w./@\-]*$")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: _equal(a, b),
    "==": lambda a, b: _equal(a, b),
    "!=": lambda a, b: not _equal(a, b),
    "<": lambda a, b: _numbers(a, b) and a < b,
    "<=": lambda a, b: _numbers(a, b) and a <= b,
    ">": lambda a, b: _numbers(a, b) and a > b,
    ">=": lambda a, b: _numbers(a, b) and a >= b,
    "in": lambda a, b: any(_equal(a, each) for each in b),
}


def rule(given: Any, key: str) -> Test:
    """A rule as a function of a point: whether it leaves the point out.

    A condition on a key that a point does not have does not hold. Text is compared as it is, numbers by their value.

    Args:
        given: an expression, or a mapping of keys to values: all of them hold; a list holds for any of its items, and a text such
            as ``"<5"`` compares.
        key: where the rule stands, for the message.

    Raises:
        ConfigError: it cannot be read.
    """
    if isinstance(given, Mapping) and given:
        return _all([_of_entry(str(name), wanted, key) for name, wanted in given.items()])
    if isinstance(given, str) and given.strip():
        return _Parser(given, key).parsed()
    raise ConfigError(f"{key}: found {given!r}; accepted are {GRAMMAR}, or a mapping of keys to values.")


def _of_entry(name: str, wanted: Any, key: str) -> Test:
    if not _KEY.match(name):
        raise ConfigError(f"{key}: found the key {name!r}; accepted are keys such as scheduler or guidance.scale.")
    if isinstance(wanted, str) and (found := re.match(r"^\s*(<=|>=|!=|<|>)\s*(.+)$", wanted)):
        return _condition(name, found[1], _value(found[2].strip()))
    return _condition(name, "in" if isinstance(wanted, list) else "=", wanted)


def _condition(name: str, operator: str, wanted: Any) -> Test:
    def holds(lookup: Lookup) -> bool:
        found = lookup(name)
        return found is not MISSING and _OPERATORS[operator](found, wanted)

    return holds


# every part is asked, so that a key that no point has is noticed wherever it stands
def _all(tests: list[Test]) -> Test:
    return lambda lookup: False not in [test(lookup) for test in tests]


def _any(tests: list[Test]) -> Test:
    return lambda lookup: True in [test(lookup) for test in tests]


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return a == b or (isinstance(a, str) != isinstance(b, str) and str(a) == str(b))


def _value(word: str) -> Any:
    lower = word.lower()
    if lower in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[lower]
    for read in (int, float):
        try:
            return read(word)
        except ValueError:
            continue
    return word


class Rules:
    """The rules of ``sweep.exclude`` at points.

    Args:
        given: the rules as they stand in the config.
        order: the keys of points, for messages.
        composed: of a point, the lookup of keys that it does not say itself.
    """

    def __init__(self, given: Sequence[Any], order: Sequence[str], composed: Callable[[Sequence[str]], Lookup]):
        self._rules: list[Test] = [rule(given, f"sweep.exclude[{i}]") for i, given in enumerate(given)]
        self._asked: dict[str, bool] = {}
        self._values: dict[str, list[Any]] = {}  # that points had, by key
        self._named: dict[str, list[Any]] = {}  # that rules name, by key
        for number, each in enumerate(given):
            for key, value in _named(each, f"sweep.exclude[{number}]"):
                self._named.setdefault(key, []).append(value)
        self._order, self._composed = order, composed
        self.excluded = 0

    def keep(self, point: Sequence[str]) -> bool:
        """Whether no rule leaves a point out."""
        if not self._rules:
            return True
        given = {o.get_key_element().lstrip("+"): o.value() for o in map(lines_of.parse, point) if not o.is_delete()}
        composed = self._composed(point)

        def lookup(key: str) -> Any:
            # a value that refers to others is what they make of it
            found = given[key] if key in given and not _refers(given[key]) else composed(key)
            if (
                found is not MISSING
                and len(self._values.setdefault(key, [])) < _MOST_VALUES
                and found not in self._values[key]
            ):
                self._values[key].append(found)
            self._asked[key] = self._asked.get(key, False) or found is not MISSING
            return found

        dropped = True in [test(lookup) for test in self._rules]
        self.excluded += dropped
        return not dropped

    def absent(self) -> list[str]:
        """A line for each value that a rule names and no point has had so far: a slip, or a rule that no longer applies."""
        said = []
        for key, wanted in self._named.items():
            there = self._values.get(key, [])
            if not there or len(there) >= _MOST_VALUES:
                continue
            for value in wanted:
                if not any(_equal(each, value) for each in there):
                    shown = [_said(each) for each in there]
                    more = ", ..." if len(shown) > 8 else ""
                    said.append(
                        f"sweep.exclude: no point has {key}={_said(value)}.{nearest(_said(value), shown)} They have "
                        f"{', '.join(shown[:8])}{more}."
                    )
        return list(dict.fromkeys(said))

    def check_keys(self) -> None:
        """Refuse rules about keys that no point has: they would be typing errors that leave nothing out."""
        for key, found in self._asked.items():
            if not found:
                raise ConfigError(
                    f"sweep.exclude: '{key}' is no key of any point; accepted are those of the jobs, such as "
                    f"{', '.join(self._order[:4]) or 'steps'}."
                )


def _refers(value: Any) -> bool:
    """Whether a value of an override is an interpolation, or holds one."""
    if isinstance(value, Mapping):
        return any(map(_refers, value.values()))
    return any(map(_refers, value)) if isinstance(value, list) else "${" in str(value)


def _said(value: Any) -> str:
    return (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def _named(given: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The values that a rule asks for, with their keys: those that are compared by = or in."""
    if isinstance(given, Mapping):
        for name, wanted in given.items():
            if isinstance(wanted, str) and re.match(r"^\s*(<=|>=|!=|<|>)", wanted):
                continue
            yield from ((str(name), value) for value in (wanted if isinstance(wanted, list) else [wanted]))
    elif isinstance(given, str):
        parser = _Parser(given, key)
        parser.parsed()
        yield from parser.named


def select(config: Any, key: str) -> Any:
    """The value of a dotted key in a config of plain dicts; MISSING where it has none."""
    for name in key.split("."):
        if not isinstance(config, dict) or name not in config:
            return MISSING
        config = config[name]
    return config


class _Parser:
    def __init__(self, text: str, key: str):
        self._text, self._key = text, key
        self.named: list[tuple[str, Any]] = []  # keys with the values that they are compared with for being equal
        self._tokens: list[tuple[str, str]] = []
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None:
                raise self._error(f"stops at '{text[at:].strip()}'")
            self._tokens.append((str(found.lastgroup), found[str(found.lastgroup)]))
            at = found.end()

    def parsed(self) -> Test:
        try:
            found = self._either()
        except RecursionError:
            raise self._error("has too many brackets") from None
        if self._tokens:
            raise self._error(f"stops at '{self._tokens[0][1]}'")
        return found

    def _either(self) -> Test:
        tests = [self._both()]
        while self._next("or"):
            tests.append(self._both())
        return tests[0] if len(tests) == 1 else _any(tests)

    def _both(self) -> Test:
        tests = [self._one()]
        while self._next("and"):
            tests.append(self._one())
        return tests[0] if len(tests) == 1 else _all(tests)

    def _one(self) -> Test:
        if self._next("not"):
            test = self._one()
            return lambda lookup: not test(lookup)
        if self._next("("):
            found = self._either()
            self._expect(")")
            return found
        kind, name = self._take("a key")
        if kind != "word" or not _KEY.match(name):
            raise self._error(f"has '{name}' where a key was expected")
        kind, operator = self._take(f"a comparison after '{name}'")
        if operator == "in":
            wanted = self._list()
            self.named += [(name, value) for value in wanted]
            return _condition(name, "in", wanted)
        if kind != "op":
            raise self._error(f"has '{operator}' where a comparison was expected")
        value = self._one_value()
        if operator in ("=", "=="):
            self.named.append((name, value))
        return _condition(name, operator, value)

    def _one_value(self) -> Any:
        if self._tokens and self._tokens[0] == ("mark", "["):
            return self._list()
        kind, word = self._take("a value")
        if kind == "text":
            return word[1:-1]
        if kind != "word":
            raise self._error(f"has '{word}' where a value was expected")
        return _value(word)

    def _list(self) -> list[Any]:
        self._expect("[")
        found = []
        while not self._next("]"):
            found.append(self._one_value())
            if not self._next(","):
                self._expect("]")
                break
        return found

    def _next(self, word: str) -> bool:
        if self._tokens and self._tokens[0][1] == word and self._tokens[0][0] != "text":
            self._tokens.pop(0)
            return True
        return False

    def _expect(self, mark: str) -> None:
        if not self._next(mark):
            raise self._error(f"lacks '{mark}'")

    def _take(self, what: str) -> tuple[str, str]:
        if not self._tokens:
            raise self._error(f"ends where {what} was expected")
        return self._tokens.pop(0)

    def _error(self, why: str) -> ConfigError:
        return ConfigError(f"{self._key}: '{self._text}' {why}; accepted are {GRAMMAR}.")

"""Whatever is typed behind ``research``, it can be run, or it is refused in one line with exit code 2 and nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from support.random_lines import RandomLines

from research.cli import _own, run
from research.errors import ConfigError, UserError
from research.jobs import signatures
from research.jobs.compose import Composer
from research.jobs.identity import job_digest, sources_of
from research.jobs.overrides import parse
from research.jobs.plan_cache import PlanCache
from research.jobs.validate import validate

SEED = 17
LONGEST = 2_500  # characters of a refusal


@pytest.fixture(scope="module")
def known() -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The config that is composed when nothing is said, and the groups."""
    with Composer() as composer:
        return composer.job(composer.master([]), []), composer.groups()


@pytest.mark.parametrize(
    ("first", "count"), [(0, 490), *((n, 1000) for n in range(490, 10_000, 1000))], ids=lambda n: str(n)
)
@pytest.mark.spread(1)
def test_a_job_is_composed_or_refused(
    first: int, count: int, known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    signatures.forget()
    cache, composed = PlanCache(), 0
    with Composer() as composer:
        master = composer.master([])
        for line in islice(RandomLines(*known, SEED), first, first + count):
            argv = [word for word in line if not word.startswith("-")]
            try:
                refused = ""
                lines = composer.normalise(argv)
                if any(parse(each).is_sweep_override() or parse(each).is_hydra_override() for each in lines):
                    continue
                config = validate(composer.job(master, _own(lines)), cache=cache)
                assert len(job_digest(config, cache, sources_of(config, cache))) == 64
                composed += 1
            except UserError as error:
                refused = str(error)
            except Exception as error:
                error.add_note(f"{argv}")
                raise
            assert len(refused) <= LONGEST, (argv, refused[:300])
    assert composed > count // 10  # much of what is drawn can be run
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("first", range(20_000, 20_600, 10))
@pytest.mark.spread(1)
def test_the_command_plans_or_refuses(
    first: int, known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in islice(RandomLines(*known, SEED), first, first + 10):
        shows = any(word.startswith("--") and word != "--run" for word in line)  # which would run an experiment
        argv = line if shows else ["--plan", *line]
        code = run(argv)
        shown = capsys.readouterr()
        assert code in (0, 2), (argv, shown.err)
        for noise in ("Traceback", "HYDRA_FULL_ERROR", "unexpected "):
            assert noise not in shown.err, argv
        if code == 2 and not shown.out:
            refusal = shown.err.splitlines()[-1]
            assert refusal.startswith("error: "), (argv, shown.err)
            assert len(refusal) <= LONGEST, argv
            assert "\x1b" not in refusal
        assert not [*tmp_path.iterdir()], argv


def lines_of_kinds() -> Iterator[Any]:
    deep = "[" * 300
    for name, argv, words in (
        ("a key that must be there", ["~model.path"], "model.path: must be given"),
        ("a section", ["~runtime"], "runtime: is missing"),
        ("an interpolation of nothing", ["sweep.points=${nothing}"], "sweep.points: Interpolation key 'nothing'"),
        ("the same in a budget", ["budget.nfe=${nothing}"], "Interpolation key 'nothing'"),
        ("a number as a choice", ["-m", "guidance=range(3)"], "guidance: found range(3)"),
        ("no key", ["@=3"], "argument '@=3'"),
        ("a place without a choice", ["guidance@=cfg"], "argument 'guidance@=cfg'"),
        ("a place inside a list", ["~prompts.0=null"], "~prompts.0=null cannot be composed"),
        ("brackets", [f"prompts={deep}"], "cannot be read"),
        ("brackets that close", [f"prompts={deep}{']' * 300}"], "levels deep; accepted are at most 32"),
        ("a number without end", [f"steps={'9' * 5000}"], "the value of steps cannot be read"),
        ("a value without end", [f"steps={'a' * 80_000}"], "characters] "),
        ("a list as a name", ["scheduler.name=[a]"], "scheduler.name: found ['a']"),
        ("a list as a class", ["scheduler.class_name=[a]"], "scheduler.class_name: found ['a']"),
        ("keys of two kinds", ["tracker.artifacts={1:1,a:b}"], "tracker.artifacts: found the keys 1, 'a'"),
        ("a list of extractors", ["metrics.fid.features=[a]"], "metrics.fid.features: found ['a']"),
        (
            "a task as guidance",
            ["guidance._target_=research.tasks.TextToImage"],
            "is no guidance: it has no method branches",
        ),
        ("a guidance as a hook", ["+hooks.a._target_=research.guidance.CFG"], "is no hook: it has no method pre_step"),
        ("a guidance as a grid", ["sigmas._target_=research.guidance.CFG"], "is no grid of noise levels"),
        ("a guidance as a tracker", ["tracker._target_=research.guidance.CFG"], "is no tracker"),
        ("no UTF-8", ["prompts=[caf\udce9]"], r"argument 'prompts=[caf\udce9]': holds a byte that is no UTF-8"),
        ("an escape of terminals", ["steps=\x1b[31m"], r"\x1b[31m"),
    ):
        yield pytest.param(argv, words, id=name)


@pytest.mark.parametrize(("argv", "words"), lines_of_kinds())
@pytest.mark.spread(6)
def test_kinds_that_ended_in_internals(
    argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--plan"]):
        assert run([*argv, *more]) == 2
        shown = capsys.readouterr()
        assert words in shown.err + shown.out
        assert len(shown.err) <= LONGEST
        assert not [*tmp_path.iterdir()]


def test_what_a_section_lacks_is_at_its_default(known: Any) -> None:
    """A YAML of one's own need not repeat all keys of ``model``; deleted ones are as if never said."""
    with Composer() as composer:
        master = composer.master([])
        whole = validate(composer.job(master, []))
        for key in ("model.dtype", "model.allow_pickle", "model.device", "runtime.parity", "scheduler.options"):
            less = validate(composer.job(master, [f"~{key}"]))
            assert job_digest(less) == job_digest(whole), key


@pytest.mark.brought(
    "Configs and environment",
    "YAML that is nested thousands deep, or whose aliases stand for millions of values",
    "refused",
    "by its size, before it is built",
)
@pytest.mark.parametrize("kind", ["bomb", "deep", "latin", "utf16", "itself"])
@pytest.mark.spread(3)
def test_hostile_config_folders(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "conf" / "guidance").mkdir(parents=True)
    bomb = "a: &a [" + ",".join("x" * 9) + "]\n"
    bomb += "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9))
    content, words = {
        "bomb": (bomb.encode(), "stands for more than 2,000,000 values"),
        "deep": (b"scale: " + b"[" * 5000 + b"]" * 5000, "nested deeper than 64 levels"),
        "latin": ("scale: 3 # größer\n".encode("latin-1"), "is no UTF-8: byte 0xf6 in line 1"),
        "utf16": ("scale: 3\n".encode("utf-16"), "is in UTF-16"),
        "itself": (b"scale: &a [*a]\n", "holds the alias *a inside of what it stands for"),
    }[kind]
    (folder / "mine.yaml").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    assert run(["--config-dir", "conf", "guidance=mine", "tracker=none"]) == 2
    said = capsys.readouterr().err
    assert "mine.yaml" in said
    assert words in said
    assert [entry.name for entry in tmp_path.iterdir()] == ["conf"]


def test_of_a_long_refusal_the_middle_is_left_out() -> None:
    error = ConfigError(f"steps: found {'a' * 9000!r}; accepted is a whole number from 1.")
    assert len(str(error)) < 2000
    assert str(error).startswith("steps: found 'aaa")
    assert str(error).endswith("aaa'; accepted is a whole number from 1.")
    assert "characters]" in str(error)

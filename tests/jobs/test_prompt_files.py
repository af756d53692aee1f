"""Prompts from files and with wildcards: what a job asks for is settled before it has an id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.small_jobs import settings_of

from research.cli import run
from research.errors import ConfigError
from research.jobs.prompt_files import PromptRow, read_prompts
from research.jobs.wildcards import Wildcards

ROWS = 'prompt,negative_prompt,seed,guidance.scale,category\n"a fox, red",blurry,7,3,x\nan owl,,,,y\na cat,bad,9,3,z\n'


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        pytest.param(
            "a.txt",
            b"\xef\xbb\xbfa red fox\r\n\r\n# a comment\r\nan owl, blue ${x} ???\r\n",
            ["a red fox", "an owl, blue ${x} ???"],
            marks=pytest.mark.brought(
                "Prompts",
                "a prompt a line (.txt), with a byte order mark, CRLF, `${...}` or `???` in it",
                "accepted",
                "as they stand; empty lines and `# comments` are left out",
            ),
        ),
        pytest.param(
            "a.csv",
            b"Prompt;Note\na fox, red;x\n",
            ["a fox, red"],
            marks=pytest.mark.brought(
                "Prompts",
                "a table with `,`, `;` or tabs between (.csv, .tsv)",
                "accepted",
                "columns that are no settings are named and left out",
            ),
        ),
        ("a.tsv", b"caption\tx\na fox, red\t1\n", ["a fox, red"]),
        ("a.json", b'["a", {"prompt": "b"}]', ["a", "b"]),
        ("a.yaml", b"prompts:\n  - a\n  - 'b: c'\n", ["a", "b: c"]),
        ("a.jsonl", '{"prompt": "über"}\n\n"b"\n'.encode(), ["über", "b"]),
    ],
)
def test_prompts_of_files(name: str, content: bytes, prompts: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert [row.prompt for row in read_prompts(str(tmp_path / name))] == prompts


def test_rows_say_more(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(ROWS)
    assert read_prompts(str(tmp_path / "a.csv")) == [
        PromptRow("a fox, red", "blurry", 7, ("guidance.scale=3",)),
        PromptRow("an owl"),
        PromptRow("a cat", "bad", 9, ("guidance.scale=3",)),
    ]
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "a", "num_inference_steps": 5, "cfg_scale": 2.5, "guidance": {"modifiers": null}, "tag": ["q"]}'
    )
    assert read_prompts(str(tmp_path / "a.jsonl"))[0].settings == (
        "steps=5", "guidance.scale=2.5", "guidance.modifiers=null",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        pytest.param("a.txt", "café".encode("latin-1"), "a.txt is no UTF-8: byte 0xe9 in line 1",
                     marks=pytest.mark.brought("Prompts", "text in another encoding", "refused",
                                               "with the file, the line and the encoding")),
        ("a.txt", "fox".encode("utf-16"), "a.txt is in UTF-16"),
        ("a.txt", b"fox\0", "holds a NUL in line 1"),
        ("a.txt", b"\n\n", "holds no prompts"),
        ("a.txt", b'--prompt "fox" --steps 3', "flags of another program"),
        ("a.png", b"x", "accepted is a file .txt"),
        ("a.csv", b"a,b\n1,2\n", "and no prompt"),
        ("a.csv", b"prompt\na fox, red\n", 'stands in double quotes: "a fox, red"'),
        ("a.csv", b"promt,prompt\na,b\n", "found the column promt. Did you mean 'prompt'?"),
        ("a.csv", b"prompt,text\na,b\n", "found the columns prompt and text; accepted is one"),
        ("a.csv", b"prompt,seed\na,-1\n", "row 2: seed: found -1"),
        ("a.csv", b"prompt,seed\na,x\n", "row 2: seed: found 'x'"),
        ("a.csv", b"prompt,output_dir\na,x\n", "found the column output_dir, which is of no single prompt"),
        ("a.csv", b"prompt,seed\n,3\n", "row 2: found no prompt"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "a.jsonl, line 2 cannot be read"),
        ("a.jsonl", b'{"prompt": 3}', "entry 1: prompt is 3; accepted is text"),
        ("a.json", b"[" * 100_000, "nested too deep"),
        ("a.yaml", b"[" * 5000, "nested deeper than 64 levels"),
        ("none.txt", None, "it is no such file"),
    ],
)  # fmt: skip
@pytest.mark.spread(8)
def test_files_that_are_none(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_prompts(str(tmp_path / name))
    assert str(error.value).startswith("prompts_file: ")
    assert words in str(error.value)


def test_a_job_of_a_file(
    tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seeds, negative prompts and settings of rows: the pictures are those of jobs that are asked for one by one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text(ROWS)
    base = [line for line in settings_of(tiny_sd, steps=2) if not line.startswith("prompts")]
    assert run([*base, "prompts_file=a.csv"]) == 2
    assert "settings of their own (guidance.scale), so that they are 2 jobs; start a sweep" in capsys.readouterr().err
    assert run(["-m", *base, "prompts_file=a.csv", "guidance.scale=2"]) == 2
    assert "guidance.scale: given twice, as guidance.scale=2 and by a.csv" in capsys.readouterr().err
    assert run(["-m", *base, "prompts_file=a.csv", "sweep_name=file"]) == 0
    results = [json.loads(file.read_text()) for file in sorted((tmp_path / "outputs" / "file").glob("*/result.json"))]
    two = next(result for result in results if result["n_images"] == 2)
    one = next(result for result in results if result["n_images"] == 1)
    assert (two["seeds"], two["config"]["seeds"]) == ([7, 9], [7, 9])
    assert two["config"]["prompts"] == ["a fox, red", "a cat"]
    assert two["config"]["task"]["negative_prompt"] == ["blurry", "bad"]
    assert "prompts_file" not in two["config"]
    assert (one["seeds"], one["config"]["prompts"]) == ([0], ["an owl"])
    assert (
        run([*base, "prompts=[a cat]", "seed=9", "task.negative_prompt=bad", "guidance.scale=3", "sweep_name=alone"])
        == 0
    )
    alone = next((tmp_path / "outputs" / "alone").glob("*/images/*.png"))
    mine = tmp_path / "outputs" / "file" / two["job_id"] / two["images"][1]["file"]
    with Image.open(alone) as theirs, Image.open(mine) as ours:
        assert theirs.tobytes() == ours.tobytes()
    # a picture that was taken elsewhere still says its own negative prompt
    lone = tmp_path / "lone.png"
    lone.write_bytes(mine.read_bytes())
    assert run(["again", str(lone), "--out", str(tmp_path / "again")]) == 0


@pytest.mark.slow
def test_what_is_asked_for_decides_and_not_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards" / "animal.txt").write_text("fox\nowl\n")
    (tmp_path / "a.txt").write_text("a red fox\na red owl\na blue fox\na blue owl\n")
    (tmp_path / "b.txt").write_text("a {red,blue} __animal__\n")

    def ids(*lines: str) -> list[str]:
        assert run(["--plan", "--json", "tracker=none", *lines]) == 0
        return [job["job_id"] for job in json.loads(capsys.readouterr().out)["jobs"]]

    asked = ids("prompts=[a red fox,a red owl,a blue fox,a blue owl]")
    assert ids("prompts_file=a.txt") == asked
    assert ids("prompts_file=b.txt", "wildcards.expand=all") == asked
    assert ids('prompts=["a {red|blue} __animal__"]', "wildcards.expand=all") == asked
    assert ids("prompts_file=a.txt", "seeds=null", "wildcards.expand=all", "wildcards.seed=4") == asked
    drawn = ids("prompts_file=b.txt", "wildcards.expand=2")
    assert ids("prompts_file=b.txt", "wildcards.expand=2") == drawn != asked
    assert ids("prompts_file=a.txt", "seeds=[3,4,5,6]") != asked


# -- wildcards


def forms(prompt: str, folder: Path | str = "nowhere", **more: Any) -> list[str]:
    return Wildcards(expand="all", folder=str(folder), **more).forms([prompt])[0]


@pytest.mark.brought(
    "Prompts",
    "wildcards: `a {red,blue} __animal__`, with files of lines",
    "accepted",
    "with `wildcards.expand=all` or a number; without, as they stand",
)
def test_forms(tmp_path: Path) -> None:
    (tmp_path / "animal.txt").write_text("fox\n# none\n{big|small} cat\n\n")
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "wild.txt").write_text("__animal__ at night")
    assert forms("a {red,blue} fox") == ["a red fox", "a blue fox"]
    assert forms("{a, b|c}") == ["a, b", "c"]
    assert forms("{a,{b,c} d}") == ["a", "b d", "c d"]
    assert forms("{,very} old") == [" old", "very old"]
    assert forms("in {braces}, as they are") == ["in {braces}, as they are"]
    assert forms("__animal__!", tmp_path) == ["fox!", "big cat!", "small cat!"]
    assert forms("__scenes/wild__", tmp_path) == ["fox at night", "big cat at night", "small cat at night"]
    assert forms("{a,a}") == ["a"]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("{a,b", "lacks a closing brace"),
        ("__animl__", "found no animl.txt in"),
        ("__a/../../b__", "found no a/../../b.txt"),
        ("__loop__", "leads back to itself (loop > other > loop)"),
        ("__empty__", "is empty"),
        ("{0,1,2,3,4,5,6,7,8,9}" * 6, "1,000,000 forms; accepted are at most 100,000"),
        ("{" * 40 + "a,b" + "}" * 40, "braces inside one another"),
    ],
)
def test_wildcards_that_cannot_be(prompt: str, words: str, tmp_path: Path) -> None:
    for name, text in {"animal": "fox", "loop": "a __other__", "other": "b __loop__", "empty": "\n"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    with pytest.raises(ConfigError) as error:
        forms(prompt, tmp_path)
    assert words in str(error.value)


@given(
    st.lists(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=4), min_size=1, max_size=5),
    st.integers(1, 7),
    st.integers(0, 3),
)
@settings(max_examples=30, deadline=None)
def test_drawn_forms_are_some_of_all_and_stay(places: list[list[str]], wanted: int, seed: int) -> None:
    prompt = " ".join(f"{{{','.join(options)}}}" for options in places)
    whole = forms(prompt)
    drawing = Wildcards(expand=wanted, seed=seed)
    drawn = drawing.forms([prompt])[0]
    assert set(drawn) <= set(whole)
    assert drawing.forms(["{x,y,z}", prompt])[1] == drawn  # whatever stands around it
    if wanted == 1 and len(whole) > 40:
        assert (
            len({drawing.forms([prompt] * 30)[k][0] for k in range(30)}) > 1
        )  # each that stands there again draws anew


def test_more_forms_than_can_be_counted_through_are_drawn_from() -> None:
    found = Wildcards(expand=5).forms(["{a,b,c,d}" * 60])[0]
    assert len(set(found)) == 5
    assert all(len(text) == 60 for text in found)

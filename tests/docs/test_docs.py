"""Everything that the documentation tells a reader to type is typed here, page by page, and its links, pictures and tables are
held against what there is.

``pytest -m slow`` runs the pages; of some every ``research`` line is composed in the default run too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from doc_blocks import DOCS, ROOT, SCRIPTS, Reader, blocks, made_by_page, pages, pictures

EXTRAS = {"researcher/wandb.md": "wandb_workspaces"}  # what a page's blocks import that a plain install lacks
NAMES = [page.relative_to(DOCS).as_posix() for page in pages()]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    import torch

    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two of them wait for each other when the machine has other work
    try:
        yield Reader(tmp_path)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_page_does_what_it_says(name: str, reader: Reader) -> None:
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    reader.follow(DOCS / name)
    for _, _, source in pictures(DOCS / name):
        if source is not None:
            assert made_by_page(reader.folder, source).stat().st_size > 0
    if name == "reference/files.md":
        check_files(reader.folder / "outputs" / "files")


def test_the_model_of_ones_own_is_the_example() -> None:
    (block,) = (block for block in blocks(DOCS / "reference/models_own.md") if block.file == "my_model.py")
    assert block.text == (ROOT / "examples/my_model.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.spread(2)
def test_the_settings_of_a_page_compose(name: str, reader: Reader) -> None:
    reader.follow(DOCS / name, planned=True)
    assert not [line for line in reader.said.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize(
    "wrong",
    [
        "```sh\nresearch scheduler=dimm --cfg job\n```",
        "```sh\nresearch -m stepz=1,2 --plan\n```",
        '```sh title="exits with 2"\nresearch --version\n```',
        '```sh title="needs Slurm"\nresearch -m guidance.skale=1,2 hydra/launcher=submitit_slurm\n```',
        '```sh title="needs a key"\nresearch-wandb sync outputs --everything\n```',
        "```sh\nresearch --version\n```\n\n```text\nanother program\n```",
        "```python\nfrom research import nothing_of_this_name\n```",
        "```sh\nrm -r outputs\n```",
    ],
)
def test_a_page_that_is_wrong_is_noticed(wrong: str, reader: Reader) -> None:
    page = reader.folder / "page.md"
    page.write_text(wrong + "\n", encoding="utf-8")
    with pytest.raises((AssertionError, ImportError)):
        reader.follow(page)


def check_files(sweep: Path) -> None:
    """The page on files, against a sweep that was just run."""
    text = (DOCS / "reference/files.md").read_text(encoding="utf-8")
    tree = text.split("## result.json")[0]
    told = set(re.findall(r"^ {8,12}([\w.]+)/? ", tree, flags=re.MULTILINE))
    jobs = [file.parent for file in sweep.glob("*/result.json")]
    there = {path.name for folder in [sweep, *jobs] for path in folder.iterdir() if path not in jobs}
    assert there <= told
    assert {"sweep.json", "results.csv", "report.html", "result.json", "config.yaml", "images"} <= there
    table = text.split("## result.json")[1].split("## results.csv")[0]
    documented = {
        key for row in re.findall(r"^\| (`[^|]+) \|", table, flags=re.MULTILINE) for key in re.findall(r"`(\w+)`", row)
    }
    for job in jobs:
        assert set(json.loads((job / "result.json").read_text())) == documented


def test_pages_are_in_the_navigation_once() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = re.findall(r"[\w/-]+\.md", json.dumps(config["nav"]))
    assert sorted(listed) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = DOCS / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:", "#")):
            assert (page.parent / target.split("#")[0]).is_file(), f"{name}: {target}"


def test_the_map_names_what_there_is() -> None:
    """Every file and folder that the page on the architecture names, whole or from the package on."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./]+(?:\.py|/))`", text))
    assert len(named) > 40
    assert sorted(name for name in named if not any((ROOT / start / name).exists() for start in ("", "research"))) == []
    rooms = {f"research/{file.parent.name}/" for file in (ROOT / "research").glob("*/__init__.py")}
    assert rooms <= named


def test_pictures_are_small_and_made_by_their_page() -> None:
    used = {}
    for name in NAMES:
        for text, file, source in pictures(DOCS / name):
            assert text, f"{name}: {file} says nothing to who cannot see it"
            if file == "img/rooms.svg":  # measured from the code, by a tool of the repository
                continue
            assert source, f"{name}: {file} comes from no command"
            used[(DOCS / name).parent.joinpath(file).resolve()] = name
    there = {file.resolve() for file in DOCS.rglob("*.png")}
    assert there == set(used)
    assert all(file.stat().st_size < 300_000 for file in there)
    assert sum(file.stat().st_size for file in there) < 2_500_000


def test_every_command_has_its_place_in_the_reference() -> None:
    text = (DOCS / "reference/commands.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## (\S+)", text, flags=re.MULTILINE)) == set(SCRIPTS)


def test_blocks_that_are_not_run_say_what_they_need() -> None:
    for page in pages():
        for block in blocks(page):
            assert block.title == "" or block.file or block.needs or block.exit_code, f"{page}: {block.title}"
            if re.search(r"\b(torchrun|sbatch|wandb (login|sweep|agent)|model=sd\d+)\b", block.text):
                assert block.needs, f"{page}:{block.line}"


@pytest.fixture(scope="module")
def generated():
    spec = importlib.util.spec_from_file_location("docs_generated", DOCS / "generated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_have_every_choice_and_every_key(generated) -> None:
    text = generated.filled((DOCS / "reference/config.md").read_text(encoding="utf-8"))
    for group in ("model", "task", "tracker", "runtime", "prompt_set", "experiment"):
        for file in (ROOT / "conf" / group).glob("*.yaml"):
            assert f"| `{file.stem}` |" in text
    for key, value in yaml.safe_load((ROOT / "conf/config.yaml").read_text()).items():
        if key not in ("defaults", "hydra"):
            for inner in value if isinstance(value, dict) else [None]:
                assert f"| `{key if inner is None else f'{key}.{inner}'}` |" in text
    for section in ("model/emoji", "runtime/default", "tracker/wandb"):
        for key in yaml.safe_load((ROOT / f"conf/{section}.yaml").read_text()):
            if not key.startswith("_") and key != "defaults":
                assert f"| `{key}` |" in text
    assert "| `ddim` | `DDIMScheduler` |" in text


@pytest.mark.parametrize("group", ["guidance", "guidance/modifiers", "hooks", "metrics", "task", "sampler"])
def test_plugs_are_found_where_they_stand(generated, group: str) -> None:
    table, listed = generated.plugs(group), generated.classes(group)
    for file in (ROOT / "conf" / group).glob("*.yaml"):
        assert f"| `{file.stem}` |" in table
    for target in re.findall(r"^::: (\S+)$", listed, flags=re.MULTILINE):
        module, name = target.rsplit(".", 1)
        source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        assert re.search(rf"^class {name}\b", source, flags=re.MULTILINE)
        assert f"(#{target})" in table


def test_a_mark_that_names_nothing_is_an_error(generated) -> None:
    with pytest.raises(KeyError):
        generated.filled("<!-- generated: nothing -->")


def test_help_is_that_of_the_command(generated) -> None:
    assert "--until-finished" in generated.command_help("research-report")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ})
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/reference/guidance.html").read_text(encoding="utf-8")
    assert "Adaptive projected guidance" in page
    assert "generated:" not in page
    for page in (tmp_path / "site/reference").glob("*.html"):  # nothing private is told of
        named = re.findall(r'href="#(research\.[\w.]+)"', page.read_text(encoding="utf-8"))
        assert not [name for name in named if re.search(r"\._(?!_)|__(init|repr)__", name)], page.name


@pytest.mark.parametrize(
    ("told", "cell"),
    [
        ("model=custom 'prompts=[a sentence,another one]'", "`model=custom` `'prompts=[a sentence,another one]'`"),
        ('["scheduler=heun and steps<5"], steps<5', '[`"scheduler=heun and steps<5"`], steps&lt;5'),
        ("a*b | report.margin.fid=10%", r"a\*b \| `report.margin.fid=10%`"),
    ],
)
def test_settings_in_a_table_are_code_as_a_whole(generated, told: str, cell: str) -> None:
    assert generated._cell(told) == cell


@pytest.mark.parametrize("group", ["guidance", "guidance/modifiers", "hooks", "sampler"])
def test_every_plug_has_a_test_that_says_what_it_agrees_with(generated, group: str) -> None:
    held = generated._held()
    names = {generated._name(group, file) for file in generated._files(group) if file.stem not in ("none", "loop")}
    assert not [name for name in sorted(names) if f"{group}/{name}" not in held]
    keys = {"source", "against", "within", "test"}
    assert all(keys <= entry.keys() <= {*keys, "differs"} for entries in held.values() for entry in entries)


def test_no_test_speaks_for_a_plug_that_is_not_there(generated) -> None:
    groups = ("guidance", "guidance/modifiers", "hooks", "sampler")
    there = {f"{group}/{generated._name(group, file)}" for group in groups for file in generated._files(group)}
    assert generated._held().keys() <= there

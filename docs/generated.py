"""What the documentation says of configs, plugs and commands is read from them when the site is built (an MkDocs hook).

A line ``<!-- generated: NAME ARGUMENT -->`` in a page becomes a table, or blocks for mkdocstrings. Of libraries only YAML is
imported, so that a test can make the same tables without MkDocs.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
MARK = re.compile(r"^<!-- generated: (\w+)(?: (\S+))? -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls it with each page's Markdown."""
    return filled(markdown)


def filled(markdown: str) -> str:
    """Markdown with every mark replaced by what it stands for.

    Raises:
        KeyError: a mark names nothing that can be generated.
    """
    return MARK.sub(lambda match: MAKERS[match[1]](*([match[2]] if match[2] else [])), markdown)


# -- configs


def keys_of(file: str) -> str:
    """The keys of a config with their defaults and comments, as a table; sections inside are dotted."""
    lines = (CONF / file).read_text(encoding="utf-8").splitlines()
    rows: list[str] = []
    stack: list[tuple[int, str]] = []
    for line in lines:
        match = re.match(r"^( *)([\w@/]+):(?: +([^#]*?))?(?: +# ?(.*))?$", line)
        if match is None:
            continue
        indent, key, value, comment = len(match[1]), match[2], match[3] or "", match[4] or ""
        stack = [(i, k) for i, k in stack if i < indent]
        if key in ("defaults", "hydra") and indent == 0:
            stack = [(0, key)]
            continue
        if stack and stack[0][1] in ("defaults", "hydra"):
            continue
        path = ".".join([*(k for _, k in stack), key])
        stack.append((indent, key))
        if value or comment:
            rows.append(f"| `{path}` | {_code(value)} | {_cell(comment)} |")
    return "\n".join(["| key | default | |", "|---|---|---|", *rows])


def choices_of(group: str) -> str:
    """The choices of a config group with what the first comment of each says."""
    rows = [f"| `{_name(group, f)}` | {_cell(_comment(f))} |" for f in _files(group)]
    return "\n".join([f"| `{group}=` | |", "|---|---|", *rows])


def schedulers() -> str:
    """Short names of schedulers and the classes behind them; native ones are linked to their entries on the page."""
    rows = []
    for file in _files("scheduler"):
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        options = ", ".join(f"`{k}={v}`" for k, v in (config.get("options") or {}).items())
        named = config.get("class_name")
        shown = "" if named in (None, "???") else f"`{named}`"
        if shown and "." in named:
            shown = f"[`{named.rpartition('.')[2]}`](#{source_of(named)})"
        rows.append(f"| `{file.stem}` | {shown} | {options} | {_cell(_comment(file))} |")
    return "\n".join(["| `scheduler=` | class | options | |", "|---|---|---|---|", *rows])


def solvers() -> str:
    """A block for mkdocstrings for every native solver that a scheduler's name stands for, and the names of each."""
    folder = ROOT / "research" / "solvers" / "native"
    listed = re.findall(r'"(\w+)": (\w+),', (folder / "counterparts.py").read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {}
    for file in _files("scheduler"):
        named = str(yaml.safe_load(file.read_text(encoding="utf-8")).get("class_name"))
        name = named.rpartition(".")[2] if named.startswith("research.solvers.native.") else dict(listed).get(named)
        if name:
            found.setdefault(name, []).append(file.stem)
    stands = {}
    for file in sorted(folder.glob("*.py")):
        for name in re.findall(r"^class (\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE):
            stands[name] = f"research.solvers.native.{file.stem}.{name}"
    blocks = []
    for name in sorted(found, key=str.lower):
        names = ", ".join(f"`{short}`" for short in found[name])
        blocks.append(f"::: {stands[name]}\n\n`scheduler=` {names}")
    return "\n\n".join(blocks)


# -- plugs


def plugs(group: str) -> str:
    """A group's choices with the class behind each, linked to its entry on the page."""
    rows = []
    for file in _files(group):
        targets = _targets(yaml.safe_load(file.read_text(encoding="utf-8")))
        linked = ", ".join(f"[`{t.rsplit('.', 1)[1]}`](#{source_of(t)})" for t in targets)
        rows.append(f"| `{_name(group, file)}` | {linked} | {_cell(_comment(file))} |")
    return "\n".join([f"| `{group}=` | class | |", "|---|---|---|", *rows])


def classes(group: str) -> str:
    """A block for mkdocstrings for every class that a group's configs name."""
    found: dict[str, None] = {}
    for file in _files(group):
        for target in _targets(yaml.safe_load(file.read_text(encoding="utf-8"))):
            found.setdefault(source_of(target))
    return "\n\n".join(f"::: {target}" for target in sorted(found, key=lambda t: t.rsplit(".", 1)[1].lower()))


def source_of(target: str) -> str:
    """Where a class stands: ``research.guidance.CFG`` is ``research.guidance.cfg.CFG``.

    Raises:
        LookupError: its package exports no such name.
    """
    package, name = target.rsplit(".", 1)
    file = ROOT.joinpath(*package.split(".")).with_suffix(".py")
    if file.is_file():
        return target
    tree = ast.parse((ROOT.joinpath(*package.split(".")) / "__init__.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            return f"{node.module}.{name}"
    raise LookupError(f"{target}: {package} exports no {name}")


def _targets(config: Any) -> list[str]:
    """The classes that a config names: its own, or those of its entries."""
    if not isinstance(config, dict):
        return []
    if "_target_" in config:
        return [config["_target_"]]
    inner = [entry["_target_"] for entry in config.values() if isinstance(entry, dict) and "_target_" in entry]
    return list(dict.fromkeys(inner))


# -- commands


def command_help(name: str) -> str:
    """What a console script says for ``--help``, from a process of its own."""
    script, _, sub = name.partition("/")
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"][script]
    module, function = entry.split(":")
    words = [script, *([sub] if sub else []), "--help"]
    code = f"import sys; sys.argv = {words!r}; from {module} import {function}; {function}()"
    environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(f"{script} --help: exit code {done.returncode}\n{done.stderr}")
    return f"```text\n{done.stdout.strip()}\n```"


# -- what agrees with what, read from the marks of the tests that hold it


def fidelity(group: str) -> str:
    """For each choice of a group: where it comes from, what a test holds it against, how closely, and what differs."""
    held = _held()
    rows = []
    for name in (_name(group, file) for file in _files(group) if file.stem != "none"):
        for entry in held.get(f"{group}/{name}", []):
            against = f"{_cell(entry['against'])}<br><small>{_breakable(entry['test'])}</small>"
            source, within, differs = (_cell(entry.get(key, "")) for key in ("source", "within", "differs"))
            rows.append(f"| `{name}` | {source} | {against} | {within} | {differs} |")
    return "\n".join(
        ["| | source | held against, by the test | within | differs on purpose |", "|---|---|---|---|---|", *rows]
    )


def _held() -> dict[str, list[dict[str, str]]]:
    """The marks ``fidelity`` of the tests, by the choice that they are of."""
    found: dict[str, list[dict[str, str]]] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        text = file.read_text(encoding="utf-8")
        if "mark.fidelity(" not in text:
            continue
        for node in ast.parse(text).body:
            for mark in getattr(node, "decorator_list", []):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fidelity":
                    said = {str(each.arg): ast.literal_eval(each.value) for each in mark.keywords}
                    said["test"] = f"{file.relative_to(ROOT).as_posix()}::{getattr(node, 'name', '')}"
                    found.setdefault(ast.literal_eval(mark.args[0]), []).append(said)
    return found


# -- small things


def _files(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


def _name(group: str, file: Path) -> str:
    return file.relative_to(CONF / group).with_suffix("").as_posix()


def _comment(file: Path) -> str:
    """The comment that a file begins with, its lines joined, less commands that continue it."""
    said = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            said.append(line.removeprefix("#").strip())
    return " ".join(said)


def _code(value: str) -> str:
    """A default as code; one that runs over several lines stands in the file."""
    value = value.strip()
    return f"`{value}`".replace("|", "\\|") if value else ""


def _breakable(test: str) -> str:
    """The place of a test as code that may be broken between its words."""
    broken = re.sub(r"(::|[/_])", r"\1<wbr>", test)
    return f"<code>{broken}</code>"


_SETTING = r"[a-z_]+(?:[./][\w.]+)*="
_AS_CODE = re.compile(rf"(?<![\w`])('{_SETTING}[^'`]*'|\"{_SETTING}[^\"`]*\"|_\w+_|{_SETTING}\S*[\w\]'%])")


def _cell(text: str) -> str:
    """Prose for a table's cell, its settings as code: no column marks, and nothing that reads as a tag or an emphasis."""
    parts = _AS_CODE.split(text.replace("|", "\\|"))
    prose = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    code = [f"`{part}`" for part in parts[1::2]]
    return "".join(a + b for a, b in zip(prose, [*code, ""], strict=True))


MAKERS = {
    "keys": keys_of,
    "choices": choices_of,
    "schedulers": schedulers,
    "solvers": solvers,
    "plugs": plugs,
    "classes": classes,
    "help": command_help,
    "fidelity": fidelity,
}

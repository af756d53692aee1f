"""Reads the fenced blocks of the documentation's pages, and runs them as a reader would: in order, in one folder a page.

A block's title, which a reader sees too, says what is done with it:

* no title: shell lines and Python are run; Python blocks of a page share their names, as in a notebook
* a file's name (Python, YAML, ...): the block is written to that file
* ``exits with N``: the last line ends with that exit code
* ``needs ...``: cannot run on any machine; its settings are composed, its flags looked up
* a ``text`` block is what the commands before it print: its first line is found in it, numbers left out
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
_FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)(?: *<!-- from (\S+) -->)?")
LARGE = 200_000  # bytes of a picture
_SHELL = {"cat", "cp", "ls", "mkdir"}


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that it is written to."""
        return self.title if re.fullmatch(r"[\w./-]+\.\w+", self.title) else None

    @property
    def needs(self) -> bool:
        return self.title.startswith("needs ")

    @property
    def exit_code(self) -> int:
        found = re.fullmatch(r"exits with (\d+)", self.title)
        return int(found.group(1)) if found else 0

    def commands(self) -> list[list[str]]:
        """The words of each line, with continued lines joined and comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        title = re.search(r'title="([^"]*)"', match.group(3))
        line = text.count("\n", 0, match.start()) + 1
        body = textwrap.dedent(match.group(4))
        found.append(Block(match.group(2), title.group(1) if title else "", body, line))
    return found


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def pictures(page: Path) -> list[tuple[str, str, str | None]]:
    """Text, file and, if a command of the page makes it, the file it comes from in the page's folder."""
    found = _PICTURE.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))
    return [(text, file, source or None) for text, file, source in found]


def made_by_page(folder: Path, source: str) -> Path:
    """The one file that a picture's source, which may have a ``*`` for a job's id, stands for."""
    (found,) = folder.glob(source)
    return found


def small(source: Path, target: Path) -> None:
    """Copy a picture on white, no wider than a page, or as it is where that is smaller: drawings grow when resampled.

    All its colours are kept, as a palette makes bands of gradients.
    """
    from PIL import Image

    image = Image.open(source).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    found = []
    for width in (image.width, 1000, 800):
        held = io.BytesIO()
        image.thumbnail((width, 1600))
        image.save(held, "PNG", optimize=True)
        found.append(held.getvalue())
    whole, page, narrow = found
    chosen = page if len(page) <= min(LARGE, len(whole)) else min(whole, page, narrow, key=len)
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(chosen)


@dataclass
class Reader:
    """Someone who types a page, block by block, in a folder beside a copy of the examples."""

    folder: Path
    said: str = ""
    names: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})

    def __post_init__(self) -> None:
        shutil.copytree(ROOT / "examples", self.folder / "examples", dirs_exist_ok=True)
        self.here = self.folder

    def follow(self, page: Path, *, planned: bool = False) -> None:
        """Do what the page says; `planned` composes the jobs of ``research`` and runs nothing."""
        for block in blocks(page):
            where = f"{page.name}:{block.line}"
            try:
                self._do(block, where, planned=planned)
            except BaseException as error:
                error.add_note(f"in {where}\n{self.said[-3000:]}")
                raise

    def _do(self, block: Block, where: str, *, planned: bool) -> None:
        if block.file is not None:
            (self.here / block.file).parent.mkdir(parents=True, exist_ok=True)
            (self.here / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            self._type(block, planned=planned)
        elif block.language == "python":
            code = compile(block.text, where, "exec")
            if not planned and not block.needs:
                with self._at_work():
                    exec(code, self.names)
        elif block.language == "text":
            if not planned:
                first = block.text.strip().splitlines()[0]
                assert _bare(first) in _bare(self.said), f"nothing printed {first!r}"
        else:
            assert block.language in ("yaml", "json"), f"{where}: a block of {block.language!r}"

    def _type(self, block: Block, *, planned: bool) -> None:
        commands = block.commands()
        for count, words in enumerate(commands, 1):
            if block.needs:
                self.compose(words)
            elif planned:
                if words[0] == "cd":
                    self.here = self.here / words[1]
                    self.here.mkdir(exist_ok=True)
                elif words[0] == "cp":
                    self._call(words)
                elif words[0] == "research" and block.exit_code == 0:
                    self.compose(words)
            else:
                code = self._call(words)
                wanted = block.exit_code if count == len(commands) else 0
                assert code == wanted, f"{shlex.join(words)}: exit code {code}, not {wanted}"

    def _call(self, words: list[str]) -> int:
        """Type one line; returns its exit code."""
        if words[0] == "cd":
            self.here = (self.here / words[1]).resolve()
            return 0
        if words[0] in SCRIPTS:
            return self._in_process(SCRIPTS[words[0]], words)
        if words[0] == "python":
            with self._at_work(), _arguments(words[1:]):
                runpy.run_path(words[1], run_name="__main__")
            return 0
        assert words[0] in _SHELL, f"{words[0]}: not a command that the documentation may use"
        done = subprocess.run(words, cwd=self.here, capture_output=True, text=True, timeout=600)
        self.said += done.stdout + done.stderr
        return done.returncode

    def _in_process(self, entry: str, words: list[str]) -> int:
        """A console script of the project, without the seconds that its imports take in a process of its own."""
        module, function = entry.split(":")
        with self._at_work(), _arguments(words):
            try:
                code = getattr(importlib.import_module(module), function)()
            except SystemExit as ending:
                code = ending.code
        return int(code or 0)

    def compose(self, words: list[str]) -> None:
        """Hold a line that is not run against what there is: settings against the configs, flags against ``--help``."""
        words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]  # of the environment
        if words[0] == "torchrun":
            words = ["research", *words[words.index("research") + 1 :]]
        if words[0] == "research":
            # launchers and sweepers that are not installed cannot be composed, nor can the ranges that only a search knows
            kept = [w for w in words if not re.match(r"\+?hydra[/.]", w)]
            kept = [re.sub(r"=interval\(([^,]+),.*\)$", r"=\1", w) for w in kept]
            sweep = any(w == "-m" or w.startswith("experiment=") for w in words)
            if "--cfg" not in words:
                kept += ["--plan"] if sweep else ["--cfg", "job"]
            code = self._call(kept)
            assert code == 0, f"{shlex.join(words)}: does not compose\n{self.said[-1000:]}"
        elif words[0] in SCRIPTS:
            sub = [words[1]] if words[0] == "research-wandb" else []
            before = len(self.said)
            self._call([words[0], *sub, "--help"])
            told = self.said[before:]
            for flag in (word for word in words if word.startswith("-")):
                assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", told), f"{words[0]} has no {flag}"

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """In the page's folder, with what is printed kept, and modules of the folder forgotten afterwards."""
        back, path, known = Path.cwd(), list(sys.path), set(sys.modules)
        out = io.StringIO()
        os.chdir(self.here)
        sys.path.insert(0, str(self.here))
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                yield
        finally:
            os.chdir(back)
            sys.path[:] = path
            for name in set(sys.modules) - known:
                file = getattr(sys.modules[name], "__file__", None)
                if file and Path(file).is_relative_to(self.folder.resolve()):
                    del sys.modules[name]
            self.said += out.getvalue()


@contextlib.contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = words
    try:
        yield
    finally:
        sys.argv = before


def _bare(text: str) -> str:
    """Words alone: numbers and the width of columns differ from machine to machine."""
    return " ".join(re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "#", text).split())


def main(names: list[str]) -> None:
    """Run pages and copy their pictures into the documentation: ``python tests/docs/doc_blocks.py student/schedules.md``."""
    import tempfile
    import time

    os.environ.setdefault("COLUMNS", "110")
    for name in names:
        page = DOCS / name
        keep = os.environ.get("DOCS_KEEP")
        folder = Path(keep) / page.stem if keep else Path(tempfile.mkdtemp())
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        reader, start = Reader(folder), time.process_time()
        reader.follow(page)
        for _, file, source in pictures(page):
            if source is not None:
                small(made_by_page(folder, source), (page.parent / file).resolve())
        print(f"{name}: {time.process_time() - start:.1f} s of CPU")
        if keep:
            (folder / "said.txt").write_text(reader.said)


if __name__ == "__main__":
    main(sys.argv[1:])

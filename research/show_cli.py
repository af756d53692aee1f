"""The command ``research show``: what a job was, what it cost and what came of it, from its record."""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from research.errors import UserError
from research.jobs.record import RESULT, JobResult, read_result
from research.results.read import Row, read_row
from research.showing import number

OK, FAILED, BAD_INPUT = 0, 1, 2
_WIDTH = 80  # columns
_KEY = 14
_PHASES = ("load", "encode", "denoise", "decode", "metrics", "total")
_SHOWN = 8  # images
_EPILOG = """\
JOB is a job's folder, its result.json, one of its pictures, or the beginning of an id below --in. A sweep's folder shows the
table of its jobs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if a job that is shown failed, 2 if nothing can be shown."""
    parser = argparse.ArgumentParser(prog="research show", description="Show what a job was and gave.", epilog=_EPILOG)
    parser.add_argument(
        "jobs", nargs="+", metavar="JOB", help="a job's folder, a picture of it, or the beginning of its id"
    )
    parser.add_argument(
        "--in", dest="place", type=Path, default=Path("outputs"), metavar="DIR", help="where ids are looked for"
    )
    parser.add_argument("--images", type=int, default=_SHOWN, metavar="N", help=f"images to list; {_SHOWN} by default")
    parser.add_argument("--config", action="store_true", help="show the whole composed config too")
    args = parser.parse_args(argv)
    try:
        found = [_find(word, args.place) for word in args.jobs]
        codes = [_show(folder, args) for folder in found]
    except UserError as error:
        print(f"research show: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    return max(codes)


def _find(word: str, below: Path) -> Path:
    """The folder of a job, or of a sweep.

    Raises:
        UserError: there is none, or several ids begin so.
    """
    path = Path(word).expanduser()
    if path.is_file():
        for folder in path.absolute().parents:
            if (folder / RESULT).is_file():
                return path.parent if path.name == RESULT else Path(*_relative(folder))
        raise UserError(
            f"{word}: belongs to no job: no folder above it has a {RESULT}; accepted is a job's folder, or a file in it."
        )
    if path.is_dir():
        if (path / RESULT).is_file() or any(path.glob(f"*/{RESULT}")):
            return path
        raise UserError(f"{word}: found no {RESULT} there; accepted is the folder of a job, or of a sweep.")
    matching = sorted(file.parent for file in below.glob(f"*/{word}*/{RESULT}")) if _is_id(word) else []
    if len(matching) == 1:
        return matching[0]
    if matching:
        more = ", ".join(str(folder) for folder in matching[:4])
        raise UserError(f"{word}: is the beginning of {len(matching)} ids ({more}); accepted is the beginning of one.")
    raise UserError(
        f"{word}: found neither a folder nor a job of that id below {below}; accepted is a job's folder, or --in DIR."
    )


def _is_id(word: str) -> bool:
    return word != "" and all(letter in "0123456789abcdef" for letter in word)


def _relative(folder: Path) -> tuple[str, ...]:
    here = Path.cwd()
    return folder.relative_to(here).parts or (".",) if folder.is_relative_to(here) else folder.parts


def _show(folder: Path, args: argparse.Namespace) -> int:
    if not (folder / RESULT).is_file():
        from research.report import print_table, read_sweep

        sweep = read_sweep(folder)
        print_table(sweep)
        return FAILED if sweep.failed else OK
    row = read_row(folder)
    for line in _lines(row, args.images):
        print(line)
    if args.config:
        import yaml

        print(yaml.safe_dump(dict(row.result.config), sort_keys=False, allow_unicode=True).rstrip())
    return OK if row.done else FAILED


def _lines(row: Row, images: int) -> Iterator[str]:
    result = read_result(row.folder)
    yield f"job {result.job_id}  {result.status}"
    if not row.done:
        yield from _told("error", result.error_line)
        yield from _told("stack", str(row.folder / "traceback.txt"))
    yield from _told("overrides", " ".join(map(shlex.quote, result.overrides)) or "none: the defaults")
    config = result.config
    for name, text in (
        ("model", _model(result)),
        ("scheduler", _named(config.get("scheduler"))),
        ("sigmas", _named(config.get("sigmas"))),
        ("guidance", _plug(config.get("guidance"))),
        ("task", _plug(config.get("task"))),
        ("hooks", ", ".join(_plug(node) for node in (config.get("hooks") or {}).values())),
        ("steps", str(config.get("steps"))),
        ("seeds", f"{min(result.seeds)} to {max(result.seeds)}" if result.seeds else ""),
    ):
        yield from _told(name, text)
    for name, value in row.metrics.items():
        yield from _told(name, number(value))
    yield from _told("NFE", f"{result.nfe} an image ({_counts(result)})" if result.nfe is not None else "")
    yield from _told("seconds", ", ".join(f"{p} {result.timings[p]:.2f}" for p in _PHASES if p in result.timings))
    yield from _told("an image", f"{row.seconds_per_image:.3f} s" if row.seconds_per_image else "")
    yield from _told("device", " ".join(filter(None, (result.device, result.dtype))))
    yield from _told(
        "made", f"{result.created or ''} with {', '.join(f'{k} {v}' for k, v in result.versions.items() if v)}"
    )
    yield from _told("plugs", ", ".join(f"{name} ({digest})" for name, digest in result.plug_sources.items()))
    for warning in result.warnings:
        yield from _told("warning", warning)
    yield f"images {row.folder}"
    for image in result.images[:images]:
        yield from _told(f"  {image.file.rpartition('/')[2]}", image.prompt or "")
    if len(result.images) > images:
        yield f"  ... and {len(result.images) - max(images, 0)} more"
    if row.done:
        yield f"once more: research again {row.folder}"


def _told(name: str, text: str) -> Iterator[str]:
    """A fact, wrapped; nothing of one that says nothing."""
    if not text:
        return
    first = f"{name:<{_KEY}}"
    yield from textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first if first.endswith(" ") else f"{first} ",
        subsequent_indent=" " * _KEY,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _model(result: JobResult) -> str:
    model = result.config.get("model") or {}
    sha = f", weights {result.weights_sha256[:12]}" if result.weights_sha256 else ""
    return f"{model.get('path') or model.get('_target_') or ''}{sha}"


def _named(node: object) -> str:
    if not isinstance(node, dict):
        return ""
    options = (
        node.get("options") if "options" in node else {k: v for k, v in node.items() if k not in ("name", "_target_")}
    )
    more = ", ".join(f"{key}={value}" for key, value in (options or {}).items() if value is not None)
    return f"{node.get('name') or node.get('class_name') or ''}{f' ({more})' if more else ''}"


def _plug(node: object) -> str:
    """``Interval(CFG(scale=3))`` in the words of a config."""
    if not isinstance(node, dict):
        return str(node)
    name = str(node.get("_target_", "")).rpartition(".")[2]
    inner = {key: value for key, value in node.items() if key not in ("_target_", "modifiers") and value is not None}
    said = ", ".join(f"{key}={_plug(value) if isinstance(value, dict) else value}" for key, value in inner.items())
    found = f"{name}({said})"
    for modifier in (node.get("modifiers") or {}).values():
        found = f"{found} in {_plug(modifier)}"
    return found


def _counts(result: JobResult) -> str:
    return ", ".join(f"{name} {count}" for name, count in result.nfe_by_branch.items())


if __name__ == "__main__":
    sys.exit(main())

"""The command ``research-inspect``: what a model is, whether it can be loaded safely, and single files as directories.

Exit codes: 0 it can be loaded safely (or was converted), 1 it cannot, 2 the command line cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from research.errors import ConfigError, UserError
from research.models.inspect.safe_files import shown

OK, REFUSED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run the command in this process and return its exit code; the report goes to stdout, errors to stderr."""
    try:
        with _stoppable():
            return _command(_arguments(argv))
    except ConfigError as error:
        return _report(error, BAD_INPUT)
    except UserError as error:
        return _report(error, REFUSED)
    except KeyboardInterrupt:
        print("\nresearch-inspect: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains as it ends
        return REFUSED
    except SystemExit as ending:  # --help
        return ending.code if isinstance(ending.code, int) else OK
    except Exception as error:
        if os.environ.get("RESEARCH_FULL_ERROR") == "1":
            raise
        return _report(
            UserError(f"unexpected {type(error).__name__}: {error} (RESEARCH_FULL_ERROR=1 shows the stack)"), REFUSED
        )


def _command(args: argparse.Namespace) -> int:
    offline = True if args.offline else None
    if args.convert is not None:
        return _convert(args, offline)
    for name in ("original_config", "tokenizer"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')}: goes with --convert.")
    from research.models.inspect.inspect_model import inspect_model
    from research.models.inspect.report import lines

    place = {"revision": args.revision, "variant": args.variant, "subfolder": args.subfolder}
    found = inspect_model(args.path, config=args.config, deep=args.deep, offline=offline, **place)
    if args.json:
        _say(json.dumps(found.to_dict(), indent=2))
    else:
        for line in lines(found):
            _say(line)
    return OK if found.loads_safely else REFUSED


def _convert(args: argparse.Namespace, offline: bool | None) -> int:
    for name in ("deep", "revision", "variant", "subfolder"):
        if getattr(args, name):
            raise ConfigError(f"--{name}: goes with a look at a model, not with --convert.")
    from research.models.convert import convert_model

    written = convert_model(
        args.path,
        args.convert,
        config=args.config,
        original_config=args.original_config,
        tokenizer=args.tokenizer,
        allow_pickle=args.allow_pickle,
        offline=offline,
    )
    if args.json:
        _say(json.dumps({"path": args.path, "written": str(written)}, indent=2))
    else:
        _say(f"written to {shown(written, 1000)}; model.path={shown(written, 1000)} loads it")
    return OK


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; see research-inspect --help.")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="research-inspect",
        description="Say what a model is and whether it can be loaded safely, or convert it. No pickle is opened to look at it.",
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="PATH_OR_ID", help="a zoo name, a directory, a checkpoint file or a hub id")
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.add_argument(
        "--convert", metavar="OUT", help="write it as a diffusers directory of safetensors to OUT, a new folder"
    )
    parser.add_argument(
        "--config", metavar="DIR", help="for a single file: a diffusers directory with its configs and tokenizer"
    )
    parser.add_argument(
        "--original-config", metavar="FILE", help="with --convert: the YAML it was trained with, instead of --config"
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="with --original-config: a tokenizer's folder; a YAML names none"
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="with --convert: read pickled weights (tensors alone, by weights_only)",
    )
    parser.add_argument("--deep", action="store_true", help="look for NaN in all weights, also in more than 256 MB")
    parser.add_argument("--revision", metavar="NAME", help="of a hub id: a branch, a tag or a commit")
    parser.add_argument("--variant", metavar="NAME", help="of the weights, such as fp16, where a part has it")
    parser.add_argument("--subfolder", metavar="FOLDER", help="where in the directory or the repository the model is")
    parser.add_argument("--offline", action="store_true", help="never use the network")
    args = parser.parse_args(list(argv))
    if args.config is not None and args.original_config is not None:
        raise ConfigError("command line: found --config and --original-config; accepted is one of them.")
    return args


def _say(text: str) -> None:
    """Names in files may hold what a terminal's encoding does not."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def _report(error: BaseException, code: int) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"research-inspect: {shown(text.removeprefix('model.path: '), 2000)}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """A request to end is handled as Ctrl-C is, so that nothing half-written stays behind."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()

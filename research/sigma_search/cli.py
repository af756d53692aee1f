"""The command ``research-sigmas``: finds noise levels for a model, a solver and a number of steps, and writes them to a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from research.errors import ConfigError, UserError
from research.files import write_atomic

OK, REFUSED, BAD_INPUT = 0, 1, 2
_EPILOG = """settings are those of research, each with one value:
  model=emoji scheduler=dpmpp_2m steps=6 guidance.scale=3 'prompts=[a fox,a pizza]'
for whose pictures levels are found; its tracker does not count, nor do its metrics, but for fid with --objective fid.

examples:
  research-sigmas optimise scheduler=dpmpp_2m steps=6 -o my.yaml
  research-sigmas optimise scheduler=unipc steps=5 guidance.scale=3 --method search --evaluations 150 -o my.yaml
  research-sigmas optimise steps=4 --method search --objective fid --images 64 metrics.fid.reference=emoji -o my.yaml
  research -m scheduler=dpmpp_2m steps=6 sigmas=file,karras,model sigmas.path=my.yaml
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; see research-sigmas --help.")


def main() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run the command in this process.

    Returns:
        0; 1 where the model cannot be used, 2 after one line on stderr that says what is wrong with the input.
    """
    try:
        return _optimise(_arguments(argv))
    except ConfigError as error:
        return _report(error, BAD_INPUT)
    except UserError as error:
        return _report(error, REFUSED)
    except BrokenPipeError:
        return OK
    except SystemExit as ending:  # of --help
        return ending.code if isinstance(ending.code, int) else OK


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="research-sigmas",
        description="Find noise levels for a model, a solver and a number of steps.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("action", choices=("optimise",), help="what to do")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument(
        "--method",
        choices=("gits", "search"),
        default="gits",
        help="gits: dynamic programming over the errors of Euler's steps along converged runs (arXiv:2405.11326); search: from "
        "the best grid known, descend the error of the solver itself (default: gits)",
    )
    parser.add_argument(
        "--objective",
        choices=("error", "fid"),
        default="error",
        help="what search descends, and grids are judged by: error, the distance of the solver's latents from a converged run's; "
        "fid, the distance of its pictures from the reference of the setting's metrics.fid, for solvers that add noise too. FID "
        "of few images is noisy: give --images, 64 and more (default: error)",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the YAML file to write")
    parser.add_argument("--images", type=int, default=16, help="to find with, and as many to judge by (default: 16)")
    parser.add_argument("--fine", type=int, default=60, help="steps of the converged runs (default: 60)")
    parser.add_argument("--coefficient", type=float, default=1.15, help="of gits: see arXiv:2405.11326 (default: 1.15)")
    parser.add_argument("--evaluations", type=int, default=120, help="of search: runs to try at most (default: 120)")
    parser.add_argument("--config-dir", metavar="FOLDER", help="a folder of config groups of your own")
    return parser.parse_intermixed_args(list(argv))


def compose(
    words: Sequence[str], images: int, config_dir: str | None = None, *, metrics: str = "none"
) -> dict[str, Any]:
    """The job whose pictures levels are found for: its prompts in turn, for so many images, and metrics unless words say others.

    Raises:
        ConfigError: as ``research`` has it for the same words; several values of a key.
    """
    from research.jobs.compose import Composer
    from research.jobs.validate import validate

    words = ["tracker=none", f"metrics={metrics}", *words]
    with Composer(config_dir) as composer:
        lines = composer.normalise(words)
        from research.jobs import overrides

        for line in lines:
            if overrides.parse(line).is_sweep_override():
                raise ConfigError(
                    f"{line.partition('=')[0]}: found several values; accepted is one, levels are found for one setting."
                )
        config = validate(composer.job(composer.master(lines), lines))
    prompts = list(config["prompts"])
    if prompts:
        config["prompts"] = [prompts[i % len(prompts)] for i in range(images)]
    config["images_per_prompt"] = 1 if prompts else images
    return config


def _optimise(args: argparse.Namespace) -> int:
    for key, least in (("images", 2), ("fine", 10), ("evaluations", 1)):
        if getattr(args, key) < least:
            raise ConfigError(f"--{key}: found {getattr(args, key)}; accepted are {least} and more.")
    if not 0.0 < args.coefficient < 10.0:
        raise ConfigError(f"--coefficient: found {args.coefficient:g}; accepted are numbers above 0 and below 10.")
    if args.out.is_dir():
        raise ConfigError(f"--out: {args.out} is a folder; accepted is a file.")
    metrics = "fid" if args.objective == "fid" else "none"
    config = compose(args.settings, args.images, args.config_dir, metrics=metrics)
    if config["steps"] < 2:
        raise ConfigError(
            f"steps: found {config['steps']}; accepted are 2 and more, as one step leaves nothing to choose."
        )
    from research.sigma_search.find import find

    found = find(
        config,
        method=args.method,
        images=args.images,
        fine=args.fine,
        coefficient=args.coefficient,
        evaluations=args.evaluations,
        objective=args.objective,
        told=lambda line: print(line, file=sys.stderr),
    )
    content = found.content(command=" ".join(["research-sigmas", args.action, *args.settings]), made=datetime.now(UTC))
    try:
        write_atomic(args.out, content.encode())
    except OSError as error:
        raise ConfigError(f"--out: {args.out} cannot be written: {error.strerror or error}.") from error
    print("\n".join(found.table()))
    print(f"written: {args.out}")
    return OK


def _report(error: UserError, code: int) -> int:
    print(f"research-sigmas: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()

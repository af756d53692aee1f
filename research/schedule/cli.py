"""The command ``research-schedule``: noise schedules as tables and figures, and what is doubtful about them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from research.errors import ConfigError, UserError
from research.files import write_atomic

OK, FINDINGS, BAD_INPUT = 0, 1, 2
_EPILOG = """settings (each takes several values: a,b):
  scheduler=ddim,euler       names, or classes of diffusers (default: ddim)
  steps=20                   (default: 25)
  model=emoji                whose schedule it is: a zoo model, a directory, a scheduler_config.json, a cached hub id
  strength=0.6               shows where image-to-image starts
  parity=true                judge the diffusers pipeline and not what this project makes of it
  scheduler.options.X=...    an option of the schedulers
  sigmas=karras,beta         grids of noise levels (default: model, the schedulers' own), or a list: sigmas=[14.6,6.5,1,0]
  sigmas.X=...               an option of the grids
with --course:
  beta_schedule=linear,squaredcos_cap_v2  beta_start=0.0001  beta_end=0.02,0.004  num_train_timesteps=1000
  rescale_betas_zero_snr=false,true       input_scale=1,0.5

examples:
  research-schedule scheduler=ddim,euler,dpmpp_2m_karras steps=20 --png out.png
  research-schedule --lint scheduler=ddim scheduler.options.timestep_spacing=leading,trailing,linspace steps=20
  research-schedule scheduler=unipc steps=8 --table
  research-schedule scheduler=euler sigmas=model,karras,ays,beta steps=10 --png grids.png
  research-schedule --course beta_schedule=linear,squaredcos_cap_v2 input_scale=1,0.5,0.25 --png course.png
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; see research-schedule --help.")


def main() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run the command in this process.

    Returns:
        0; 1 with ``--lint`` where something cannot work; 2 after one line on stderr that says what is wrong with the input.
    """
    try:
        args = _parser().parse_intermixed_args(list(argv))
        return _course(args) if args.course else _schedules(args)
    except UserError as error:
        return _report(" ".join(str(error).split()))
    except OSError as error:
        return _report(f"{error.filename}: cannot be written: {error.strerror or error}")
    except BrokenPipeError:
        return OK
    except SystemExit as ending:  # of --help
        return ending.code if isinstance(ending.code, int) else OK


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="research-schedule",
        description="Noise schedules side by side: a table, a figure, and what is doubtful about them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("-cd", "--config-dir", type=Path, metavar="DIR", help="a folder of config groups of your own")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the figure")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table's numbers")
    parser.add_argument("--json", action="store_true", help="print numbers and findings as JSON, for scripts")
    parser.add_argument(
        "--lint", action="store_true", help="only look for faults; exit code 1 if something cannot work"
    )
    parser.add_argument("--table", action="store_true", help="print the solver in numbers: factors of each step")
    parser.add_argument("--course", action="store_true", help="beta schedules and input scales instead of schedulers")
    parser.add_argument("--image", metavar="FILE", help="with --course: a picture to noise (a file, or zoo:NAME)")
    return parser


def _schedules(args: argparse.Namespace) -> int:
    from research.schedule.arguments import read
    from research.schedule.points import DEFAULTS, compose
    from research.schedule.table import as_csv, as_json, coefficient_lines, finding_lines, lines

    if args.image:
        raise ConfigError("command line: --image goes with --course.")
    if args.lint and (args.png or args.csv):
        raise ConfigError("command line: --lint draws and writes nothing; leave out --png and --csv, or --lint.")
    if args.config_dir and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where one's own classes stand
    series = compose(read(args.settings, DEFAULTS), draw=not args.lint, config_dir=args.config_dir)
    errors = [f for one in series for f in one.findings if f.severity == "error"]
    if not args.lint and not any(one.points for one in series):
        raise ConfigError(errors[0].message if errors else "steps: nothing to draw.")
    if args.csv:
        write_atomic(args.csv, as_csv(series))
    if args.png:
        from research.drawing import png_bytes
        from research.schedule.plot import schedule_figure

        write_atomic(args.png, png_bytes(schedule_figure(series), dpi=130))
    found = finding_lines(series)
    if args.json:
        print(as_json(series))
    else:
        if not args.lint:
            print("\n".join(coefficient_lines(series) if args.table else lines(series)))
        print("\n".join(found) if found else "lint: nothing to say")
    _written(args)
    return FINDINGS if args.lint and errors else OK


def _course(args: argparse.Namespace) -> int:
    from research.schedule.arguments import read
    from research.schedule.course import DEFAULTS, as_csv, as_json, compose, course_figure, lines

    if args.lint:
        raise ConfigError("command line: --lint is about schedulers; it does not go with --course.")
    if args.config_dir:
        raise ConfigError("command line: --config-dir is about schedulers; it does not go with --course.")
    if args.table:
        raise ConfigError("command line: --table is about schedulers; it does not go with --course.")
    schedules = compose(read(args.settings, DEFAULTS, prefixes=()))
    if args.csv:
        write_atomic(args.csv, as_csv(schedules))
    if args.png:
        from research.drawing import png_bytes

        write_atomic(args.png, png_bytes(course_figure(schedules, args.image), dpi=130))
    print(as_json(schedules) if args.json else "\n".join(lines(schedules)))
    _written(args)
    return OK


def _written(args: argparse.Namespace) -> None:
    for file in (args.csv, args.png):
        if file is not None:
            print(f"written: {file}", file=sys.stderr)


def _report(text: str) -> int:
    print(f"research-schedule: {text}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    main()

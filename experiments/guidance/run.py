"""Run the study: every method over its scales and groups of seeds, at equal steps and at equal evaluations.

    python experiments/guidance/run.py --short           # under ten minutes on two cores
    python experiments/guidance/run.py                   # under three hours
    python experiments/guidance/run.py --list            # what it would run, command by command

Each line is the project's own command (`research -m experiment=guidance_study ...`), run in this process so that the model is
loaded once. Jobs that are done are not run again: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from methods import METHODS, Method


@dataclass(frozen=True)
class Form:
    """How large the study is."""

    experiment: str
    budgets: tuple[int, ...]  # model evaluations, at equal evaluations
    steps: tuple[int, ...]  # at equal steps
    scales: slice  # of a method's
    seeds: tuple[int, ...]  # the first of each group; a group goes through all methods before the next begins


LONG = Form("guidance_study", (50,), (25,), slice(None), (0, 1000, 2000, 3000))
SHORT = Form("guidance_study_short", (20,), (), slice(1, None, 2), (0, 1000))


def commands(form: Form, methods: list[Method], output: str) -> Iterator[list[str]]:
    """The command lines of the study, after `research`."""
    for seed, method in product(form.seeds, methods):
        steps = sorted({*form.steps, *map(method.steps, form.budgets)})
        scales = method.scales[form.scales] or method.scales
        yield [
            "-m",
            f"experiment={form.experiment}",
            *method.overrides,
            "guidance.scale=" + ",".join(f"{scale:g}" for scale in scales),
            "steps=" + ",".join(map(str, steps)),
            f"seed={seed}",
            f"output_dir={output}",
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="20 evaluations, two groups of seeds, every second scale")
    parser.add_argument("--methods", help="names with | between them; all by default")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--output", default="outputs")
    args = parser.parse_args()
    wanted = args.methods.split("|") if args.methods else [method.name for method in METHODS]
    if unknown := sorted(set(wanted) - {method.name for method in METHODS}):
        parser.error(f"--methods: found {unknown[0]!r}; accepted: {' | '.join(m.name for m in METHODS)}")
    form = SHORT if args.short else LONG
    lines = list(commands(form, [m for m in METHODS if m.name in wanted], args.output))
    if args.list:
        print("\n".join("research " + " ".join(line) for line in lines))
        return 0
    from research.cli import run

    start, code = time.perf_counter(), 0
    for line in lines:
        print("research " + " ".join(line), flush=True)
        code = max(code, run(line))
    print(f"{len(lines)} sweeps, {(time.perf_counter() - start) / 60:.1f} minutes")
    return code


if __name__ == "__main__":
    sys.exit(main())

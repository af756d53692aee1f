"""Run the study: tune each method on one half of the prompts, judge it on the other, at equal network evaluations.

    python -m experiments.guidance.run                  # about an hour of one core
    python -m experiments.guidance.run --full           # hours on a GPU: more evaluations and images
    python -m experiments.guidance.run --short          # minutes: few prompts and evaluations
    python -m experiments.guidance.run --list           # what it would run, command by command

From the root of a checkout. A stage is one of the project's own sweeps (`research experiment=guidance_study ...`) over a file of
points that is written beside its jobs. Jobs that are done are not run again: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import rankdata

from experiments.guidance.methods import METHODS, MODELS, Method, Setting, methods_of
from research.errors import UserError
from research.results.read import Row, read_sweep

HERE = "experiments/guidance"
CRITERIA = ("kid", "clip_score")  # what tuning looks at: the lowest, and the highest
Choice = Mapping[str, Sequence[Setting]]  # the settings of each method, by its name


STAGES = ("tune_1", "tune_2", "judge", "solver")


@dataclass(frozen=True)
class Form:
    """How large the study is.

    Attributes:
        name: of its folder.
        evaluations: of the network an image.
        prompts: of each stage, the first ones of its half of 32.
        images: a prompt, of each stage.
    """

    name: str
    evaluations: int
    prompts: tuple[int, int, int, int]
    images: tuple[int, int, int, int]


MIDDLE = Form("guidance_study", 24, prompts=(8, 16, 32, 2), images=(1, 1, 2, 1))
FULL = Form("guidance_study_full", 48, prompts=(32, 32, 32, 32), images=(8, 8, 32, 1))
SHORT = Form("guidance_study_short", 12, prompts=(8, 8, 16, 2), images=(1, 1, 2, 1))
FORMS = {"": MIDDLE, "full": FULL, "short": SHORT}

# seeds of the stages lie apart: image k of a job has seed + k
SEEDS = {"tune_1": 0, "tune_2": 10_000, "judge": 20_000, "solver": 30_000}
METRICS = {
    "tune_1": "[kid,clip_score]",
    "tune_2": "[kid,clip_score]",
    "judge": "[fid,kid,prdc,clip_score]",
    "solver": "solver_error",
}


def prompts(form: Form, stage: str, base: Path) -> Path:
    """Write the file with the prompts of a stage: the first ones of its half."""
    half = Path(HERE, f"prompts_{'tune' if stage.startswith('tune') else 'judge'}.txt")
    lines = half.read_text(encoding="utf-8").splitlines()[: form.prompts[STAGES.index(stage)]]
    file = base / f"prompts_{stage}.txt"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def command(form: Form, model: str, stage: str, points: Path) -> list[str]:
    """The command line of a stage, after `research`."""
    more = {"judge": ["+hooks.record._target_=research.hooks.Record"], "solver": ["metrics.solver_error.times=4"]}
    return [
        "experiment=guidance_study",
        f"model={model}",
        f"metrics={METRICS[stage]}",
        f"prompts_file={prompts(form, stage, points.parent)}",
        *more.get(stage, []),
        f"images_per_prompt={form.images[STAGES.index(stage)]}",
        f"seed={SEEDS[stage]}",
        f"sweep.points={points}",
        f"output_dir={points.parent}",
        f"sweep_name={stage}",
    ]


def write_points(file: Path, choice: Choice, evaluations: int) -> None:
    """The file of points of a stage."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(setting.point(evaluations)) for settings in choice.values() for setting in settings]
    file.write_text("".join(f"- {line}\n" for line in lines), encoding="utf-8")


def found(path: Path, choice: Choice, evaluations: int) -> dict[tuple[str, str], Row]:
    """The jobs of a stage by method and label of the setting.

    Raises:
        UserError: one is not there, or failed.
    """
    keys = {key for settings in choice.values() for setting in settings for key in _flat(setting.point(evaluations))}
    rows = {_told(_overrides(row, keys)): row for row in read_sweep(path).done}
    jobs = {}
    for name, settings in choice.items():
        for setting in settings:
            row = rows.get(_told(setting.point(evaluations)))
            if row is None:
                raise UserError(
                    f"{path}: found no finished job of {name} at {setting.label}; run experiments.guidance.run again."
                )
            jobs[name, setting.label] = row
    return jobs


def _overrides(row: Row, keys: set[str]) -> dict[str, Any]:
    """The point that a job was made from: those of its overrides that points have."""
    pairs = (line.lstrip("+").split("=", 1) for line in row.result.overrides)
    return {key: yaml.safe_load(value) for key, value in pairs if key in keys}


def _flat(point: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A point with dotted keys, as overrides have them."""
    flat: dict[str, Any] = {}
    for key, value in point.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {above + key: value}
    return flat


def _told(point: Mapping[str, Any]) -> str:
    return json.dumps({key: _plain(value) for key, value in _flat(point).items()}, sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return float(value) if isinstance(value, int | float) else value


def ranks(jobs: Mapping[tuple[str, str], Row]) -> dict[tuple[str, str], float]:
    """What tuning makes low: the mean of a job's places by KID and by CLIP score among all jobs of its round, from 0 to 1.

    Places have no unit, so that neither number outweighs the other by its range, and one ruined setting moves no other's.
    """
    values = np.array([[row.metrics.get(name, math.nan) for name in CRITERIA] for row in jobs.values()]) * (1, -1)
    values = np.where(np.isfinite(values), values, np.inf)
    places = rankdata(values, axis=0).mean(1) / len(values)
    return dict(zip(jobs, places.tolist(), strict=True))


def best(choice: Choice, scores: Mapping[tuple[str, str], float], count: int) -> dict[str, list[Setting]]:
    """The settings of each method with the lowest scores, in the order in which they are written."""
    chosen = {}
    for name, settings in choice.items():
        ordered = sorted(settings, key=lambda setting: scores[name, setting.label])[:count]
        chosen[name] = [setting for setting in settings if setting in ordered]
    return chosen


def rounds(base: Path, methods: Sequence[Method], evaluations: int) -> Iterator[tuple[str, Choice]]:
    """The stages with their settings; each is to be run before the next is asked for.

    Successive halving: all settings in the first round, the two best ones again with other seeds in the second. Of these the one
    whose places in both rounds are best is judged.
    """
    everything: Choice = {method.name: method.settings for method in methods}
    yield "tune_1", everything
    first = ranks(found(base / "tune_1", everything, evaluations))
    two = best({name: settings for name, settings in everything.items() if len(settings) > 1}, first, 2)
    yield "tune_2", two
    both = {key: first[key] + rank for key, rank in ranks(found(base / "tune_2", two, evaluations)).items()}
    chosen = {name: settings for name, settings in everything.items() if len(settings) == 1} | best(two, both, 1)
    chosen = {method.name: chosen[method.name] for method in methods}
    yield "judge", chosen
    noisy = {method.name for method in methods if method.noisy}
    yield "solver", {name: settings for name, settings in chosen.items() if name not in noisy}


def stages(form: Form, model: str, methods: Sequence[Method], output: str) -> Iterator[tuple[str, list[str]]]:
    """Each stage's name and command, when the stages before it have been run."""
    base = Path(output) / form.name / model
    for stage, choice in rounds(base, methods, form.evaluations):
        if not choice:
            continue
        points = base / f"{stage}.yaml"
        write_points(points, choice, form.evaluations)
        yield stage, command(form, model, stage, points)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_const", dest="form", const="full", help="hours on a GPU")
    size.add_argument("--short", action="store_const", dest="form", const="short", help="minutes on a CPU")
    parser.add_argument("--models", default="|".join(MODELS), help="names with | between them")
    parser.add_argument("--methods", help="names with | between them; all by default")
    parser.add_argument("--stages", help="names with | between them: no further ones are run")
    parser.add_argument("--list", action="store_true", help="print the commands whose points are known and run nothing")
    parser.add_argument("--output", default="outputs")
    args = parser.parse_args()
    form = FORMS[args.form or ""]
    names = [method.name for method in METHODS]
    wanted = _chosen(parser, "--methods", args.methods, names)
    until = _chosen(parser, "--stages", args.stages, list(STAGES))
    start, code = time.perf_counter(), 0
    for model in _chosen(parser, "--models", args.models, list(MODELS)):
        mine = [method for method in methods_of(model) if method.name in wanted]
        try:
            for stage, line in stages(form, model, mine, args.output):
                if stage not in until:
                    break
                print("research " + " ".join(line), flush=True)
                if not args.list:
                    from research.cli import run

                    code = max(code, run(line))
        except UserError as error:
            if args.list:
                print(f"{model}: further stages depend on what these find")
                continue
            sys.exit(f"error: {error}")
    if not args.list:
        print(f"{(time.perf_counter() - start) / 60:.1f} minutes")
    return code


def _chosen(parser: argparse.ArgumentParser, key: str, asked: str | None, names: list[str]) -> list[str]:
    wanted = names if asked is None else asked.split("|")
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"{key}: found {unknown[0]!r}; accepted: {' | '.join(names)}")
    return wanted


if __name__ == "__main__":
    sys.exit(main())

"""The parity matrix: every task and scheduler against the diffusers pipeline on random weights, bit for bit, as Markdown.

    python experiments/parity/matrix.py [--quick | --full] [--out experiments/parity/matrix.md]
        [--seed 0] [--size 24x40] [--steps 5,8] [--schedulers ddim,heun] [--tasks image_to_image]

The exit code is 1 if a cell differs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("DIFFUSERS_VERBOSITY", "critical")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import torch
from cells import KINDS, TASKS, Bench, Setting, Verdict, attempt, compare, line
from random_models import PREDICTIONS

from research.solvers import scheduler_names

STRENGTHS = (0.29, 0.3, 0.47, 0.55, 0.7, 0.83, 1.0)
SCALES = (1.0, 3.5, 7.5)
FLOW = ("flow_euler", "flow_heun")  # for models that predict a flow, which none of these tasks has yet


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # bit-equality is promised for one machine as it is; quickest at this size
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), seed=args.seed, height=args.size[0], width=args.size[1])
        verdicts = {}
        for setting in settings(args):
            verdicts[setting_key(setting)] = (setting, compare(bench, setting))
            if not verdicts[setting_key(setting)][1].fine:
                print("differs:", setting.task, setting.scheduler, setting, file=sys.stderr)
        faults = [(what, *_fault(bench, setting)) for what, setting in known_faults(args)]
    page = "\n".join(_page(args, list(verdicts.values()), faults, time.process_time() - began))
    if args.out:
        Path(args.out).write_text(page, encoding="utf-8")
    counted = Counter(verdict.kind for _, verdict in verdicts.values())
    counted.update(kind for _, _, kind, *_ in faults)
    print(page if not args.out else f"{args.out}: {_said(counted)}")
    return 1 if counted["differs"] else 0


def settings(args: argparse.Namespace) -> Iterator[Setting]:
    """The cells. By default each strength, scale and kind of batch comes with each task, scheduler and prediction, and their
    combinations are spread over the schedulers; ``--full`` takes all combinations.
    """
    places = itertools.count()
    for task, name, prediction in itertools.product(args.tasks, args.schedulers, PREDICTIONS):
        strengths = STRENGTHS if TASKS[task][2] else (1.0,)
        scales = SCALES if task != "unconditional" else (1.0,)
        kinds = KINDS if task != "unconditional" else KINDS[:2]
        product = list(itertools.product(strengths, scales, kinds, args.steps))
        if not args.full:
            product = _spread((strengths, scales, kinds, args.steps), next(places), 3 if args.quick else 7)
        for strength, scale, kind, steps in product:
            if task in ("text_to_image", "unconditional") or int(steps * strength) >= 1:
                yield Setting(task, name, prediction, steps, strength, scale, kind)


def _spread(axes: Sequence[Sequence], place: int, count: int) -> list[tuple]:
    """A few combinations in which every value of each axis comes up, other ones for each ``place``."""
    count = max(min(count, 3), min(count, max(map(len, axes))))
    rows = []
    for k in range(count):
        first = axes[0][(k + place * count) % len(axes[0])]
        # shifts of their own keep the axes from moving in step
        rest = [axis[(k + place + place // (j + 2)) % len(axis)] for j, axis in enumerate(axes[1:])]
        rows.append((first, *rest))
    return list(dict.fromkeys(rows))


def setting_key(setting: Setting) -> str:
    return f"{setting.task} {setting.scheduler} {setting}"


def known_faults(args: argparse.Namespace) -> list[tuple[str, Setting]]:
    """Settings with which the pipelines fail or go wrong."""
    cosine = {"beta_schedule": "squaredcos_cap_v2"}
    image, text, inpaint = "image_to_image", "text_to_image", "inpaint, 4 channels"
    trailing = {"timestep_spacing": "trailing"}
    cases = [
        ("cosine betas with Karras sigmas", Setting(text, "dpmpp_2m_karras", steps=20, options=cosine)),
        ("cosine betas with Karras sigmas", Setting(image, "dpmpp_2m_karras", steps=20, strength=0.55, options=cosine)),
        (
            "cosine betas with Karras sigmas",
            Setting(text, "euler", steps=20, options={**cosine, "use_karras_sigmas": True}),
        ),
        ("strength x steps below 1", Setting(image, "ddim", steps=20, strength=0.04)),
        ("strength x steps below 1", Setting(image, "euler", steps=20, strength=0.04)),
        ("strength x steps below 1", Setting(inpaint, "ddim", steps=20, strength=0.04)),
        ("strength x steps below 1", Setting("inpaint, 9 channels", "heun", steps=20, strength=0.04)),
        ("strength x steps below 1", Setting("depth_to_image", "pndm", steps=20, strength=0.04)),
        ("strength 0", Setting(image, "ddim", steps=5, strength=0.0)),
        ("strength above 1", Setting(image, "ddim", steps=5, strength=1.01)),
        ("0.29 of 100 steps is 28 in binary", Setting(image, "ddim", steps=100, strength=0.29)),
        ("PNDM counts one evaluation too few", Setting(image, "pndm", steps=10, strength=0.5)),
        ("LMS begins at a high order", Setting(image, "lms", steps=50, strength=0.1)),
        ("DDIM hops past its timesteps", Setting(text, "ddim", steps=13, options=trailing)),
        (
            "DDIM hops past its timesteps",
            Setting(image, "ddim", steps=20, strength=0.5, options={"timestep_spacing": "linspace"}),
        ),
        (
            "zero terminal SNR with epsilon",
            Setting(text, "ddim", steps=5, options={"rescale_betas_zero_snr": True, **trailing}),
        ),
        (
            "zero terminal SNR with epsilon",
            Setting(text, "dpmpp_2m", steps=5, options={"rescale_betas_zero_snr": True, **trailing}),
        ),
        ("no add_noise", Setting(image, "IPNDMScheduler", steps=5, strength=0.6)),
        ("steps up to the last timestep", Setting(image, "ddim", steps=1000, strength=0.003)),
        ("more steps than timesteps", Setting(text, "ddim", steps=1001)),
    ]
    return [case for case in cases if case[1].task in args.tasks] if not args.quick else cases[:6]


def _fault(bench: Bench, setting: Setting) -> tuple[Setting, str, str, str]:
    """The setting, the verdict and what was said with parity, and what happens without."""
    verdict = compare(bench, setting)
    found, error = attempt(lambda: bench.by_loop(setting, parity=False))
    native = line(error) if error else f"runs, {found.nfe} evaluations"
    return setting, verdict.kind, verdict.said, native


def _page(
    args: argparse.Namespace,
    cells: list[tuple[Setting, Verdict]],
    faults: list[tuple[str, Setting, str, str, str]],
    seconds: float,
) -> Iterator[str]:
    total = Counter(verdict.kind for _, verdict in cells)
    yield "# Parity matrix\n"
    yield f"**{_said(total)}** of {len(cells)} cells; {_said(Counter(f[2] for f in faults))} of {len(faults)} settings"
    yield "with which the pipelines fail or go wrong.\n"
    yield "A cell is one setting through the diffusers pipeline and through the loop with `parity=True`, on the same random"
    yield "weights: *equal* says that the final latents (`torch.equal`, CPU, fp32) and the images' bytes are the same."
    yield "The pipelines for models without text are `DDPMPipeline` and `DDIMPipeline`, compared by their images; other"
    yield "schedulers are compared there with the plain loop of the diffusers documentation, by latents.\n"
    yield f"Made by `python experiments/parity/matrix.py {' '.join(sys.argv[1:])}`".rstrip() + ":"
    yield f"seed {args.seed}, pictures of {args.size[0]} x {args.size[1]} pixels, steps {', '.join(map(str, args.steps))},"
    yield f"strengths {', '.join(map(str, STRENGTHS))}, scales {', '.join(map(str, SCALES))},"
    yield "epsilon and v-prediction; one image, a list of pictures and prompts, and one picture for two seeds;"
    yield f"diffusers {diffusers.__version__}, torch {torch.__version__}, {platform.machine()}, {seconds:.0f} s of one core.\n"
    yield "## By task and scheduler\n"
    yield from _table(["scheduler", *args.tasks], _summary(args, cells))
    plain = [c for c in cells if c[1].kind != "equal"]
    yield "\n## Cells that are not equal\n"
    if plain:
        rows = [[s.task, s.scheduler, str(s), v.kind, v.said] for s, v in plain]
        yield from _table(["task", "scheduler", "setting", "verdict", "what was said"], rows)
    else:
        yield "None."
    yield "\n## Settings with which the pipelines fail or go wrong\n"
    yield "*both fail*: the pipeline raises what is shown and the loop gives one clear line. *equal*: the fault is reproduced"
    yield "with `parity=True`. *refused*: the loop wants a step to run. The last column is the loop without parity.\n"
    rows = [
        [what, s.task, _full(s), kind, said or "same latents and images", native]
        for what, s, kind, said, native in faults
    ]
    yield from _table(["fault", "task", "setting", "verdict", "with parity", "natively"], rows)
    yield ""


def _summary(args: argparse.Namespace, cells: list[tuple[Setting, Verdict]]) -> Iterator[list[str]]:
    for name in args.schedulers:
        row = [name]
        for task in args.tasks:
            kinds = Counter(v.kind for s, v in cells if (s.task, s.scheduler) == (task, name))
            others = "".join(f", {count} {kind}" for kind, count in kinds.items() if kind != "equal")
            row.append(f"{kinds['equal']}/{sum(kinds.values())} equal{others}")
        yield row


def _table(header: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def _full(setting: Setting) -> str:
    options = "".join(f", {key} {value}" for key, value in setting.options.items())
    strength = f", strength {setting.strength:g}" if TASKS[setting.task][2] else ""
    return f"{setting.scheduler}, {setting.steps} steps{strength}{options}"


def _said(counted: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counted.most_common())


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="a few cells for each task and scheduler")
    extent.add_argument("--full", action="store_true", help="every combination: takes an hour")
    parser.add_argument("--out", help="the Markdown file; printed by default")
    parser.add_argument("--seed", type=int, default=0, help="of weights, pictures and images")
    parser.add_argument("--size", type=_size, default=(24, 40), help="of the pictures: HEIGHTxWIDTH in pixels")
    parser.add_argument("--steps", type=_numbers, default=[5, 8], help="comma-separated")
    parser.add_argument("--schedulers", type=_names, help="comma-separated; every one by default")
    parser.add_argument(
        "--tasks", type=lambda t: [x.strip() for x in t.split(";")], default=list(TASKS),
        help=f"separated by semicolons, of: {'; '.join(TASKS)}",
    )  # fmt: skip
    args = parser.parse_args(argv)
    known = [name for name in scheduler_names() if name not in FLOW]
    args.schedulers = args.schedulers or known
    if strange := (set(args.tasks) - set(TASKS)) | (set(args.schedulers) - set(known)):
        parser.error(f"unknown: {', '.join(sorted(strange))}")
    return args


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and min(int(height), int(width)) >= 8):
        raise argparse.ArgumentTypeError(f"found {text!r}; accepted is HEIGHTxWIDTH, each from 8 pixels")
    return int(height), int(width)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())

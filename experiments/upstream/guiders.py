"""What diffusers' guiders, hooks and pipelines get wrong about guidance, checked on the installed version.

    python experiments/upstream/guiders.py [--out FILE]

Each claim is run; the table says whether it was reproduced, with the numbers.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # before diffusers is imported

import diffusers
import family_cases  # noqa: F401  they enter themselves
import formula_cases  # noqa: F401
import guider_cases  # noqa: F401
import hook_cases  # noqa: F401
import pipeline_cases  # noqa: F401
import torch
from cases import CASES, Case, Found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "guiders.md")
    out = parser.parse_args().out
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    start = time.perf_counter()
    found = [(case, case.run()) for case in CASES]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(table(found)) + "\n", encoding="utf-8")
    reproduced = sum(result.reproduced for _, result in found)
    print(f"{reproduced} of {len(CASES)} claims reproduced, {time.perf_counter() - start:.0f} s: {out}")


def table(found: Sequence[tuple[Case, Found]]) -> list[str]:
    """The table's lines."""
    lines = [
        "# Guidance upstream, claim by claim",
        "",
        f"Written by `python experiments/upstream/guiders.py` with diffusers {diffusers.__version__}, torch {torch.__version__}.",
        "",
        "| where | claim | reproduced | numbers | this project |",
        "|---" * 5 + "|",
    ]
    for case, result in found:
        cells = [case.where, case.claim, "yes" if result.reproduced else "**no**", result.numbers, case.ours]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


if __name__ == "__main__":
    main()

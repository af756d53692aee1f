"""The process that talks to W&B: reads job folders from stdin, answers each with a line on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Mirrors the jobs that come in until stdin ends. Its one argument is the tracker's settings as JSON."""
    settings = json.loads(sys.argv[1])
    # whatever W&B prints must not mix with the answers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    os.environ["WANDB_SILENT"] = "true"
    for line in sys.stdin:
        request = json.loads(line)
        # should the tracker be killed while W&B hangs, this process ends by itself
        _alarm(int(request["limit"]) + 5)
        answer = _mirror(Path(request["job"]), settings)
        _alarm(0)
        with contextlib.suppress(BrokenPipeError):
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def _mirror(job: Path, settings: dict[str, Any]) -> dict[str, Any]:
    try:
        from research.tracking.wandb_run import log_run

        return {"ok": True, "warning": log_run(job, settings)}
    except Exception as error:  # one job that cannot be mirrored must not end the others
        text = str(error).strip().splitlines()
        return {"ok": False, "warning": f"{type(error).__name__}: {text[0] if text else 'no message'}"}


def _alarm(seconds: int) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


if __name__ == "__main__":
    main()

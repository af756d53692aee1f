"""The process that talks to W&B, inside: a request a line on stdin, and an answer a line on stdout."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def main() -> None:
    """Answers until stdin ends, or a request fails: what W&B's own service is like after that nobody knows.

    Its one argument is the tracker's settings as JSON; a request's own settings go before them.
    """
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
        answer = _answer(request, {**settings, **request.get("settings", {})})
        _alarm(0)
        with contextlib.suppress(BrokenPipeError):
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
        if not answer["ok"]:
            os._exit(1)  # at once: W&B would wait for a server that does not answer


def _answer(request: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        if "groups" in request:
            from research.tracking.wandb_server import overview

            found = overview(settings["project"], settings["entity"], request["groups"], settings["request_timeout"])
            return {"ok": True, "runs": [dataclasses.asdict(run) for run in found]}
        if "dashboard" in request:
            from research.tracking.dashboard_save import save

            urls = save(Path(request["dashboard"]), request["asked"], settings["request_timeout"])
            return {"ok": True, "urls": urls}
        from research.tracking.wandb_run import log_run

        return {"ok": True, "warning": log_run(Path(request["job"]), settings)}
    except Exception as error:  # one job that cannot be mirrored must not end the others
        text = str(error).strip().splitlines()
        return {"ok": False, "warning": f"{type(error).__name__}: {text[0] if text else 'no message'}"}


def _alarm(seconds: int) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


if __name__ == "__main__":
    main()

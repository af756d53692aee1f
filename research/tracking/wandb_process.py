"""The process that talks to W&B. From outside: requests with a time limit, and an end that leaves nothing behind. Inside: a
request a line on stdin, and an answer a line on stdout."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import research

_PIECE = 1 << 20
_TO_END = 10.0  # seconds


class WorkerProcess:
    """Whatever W&B does in there, this process neither waits longer than asked nor fails by it.

    Args:
        settings: of the tracker, for every request.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        # the worker must find this package also where it was put on the path by hand
        paths = [str(Path(research.__file__).parent.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self._scratch = tempfile.mkdtemp(prefix="research-wandb-")
        own = {
            "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in paths if path),
            "TMPDIR": self._scratch,
            "WANDB_DATA_DIR": self._scratch,
            "WANDB_CACHE_DIR": self._scratch,
            "WANDB_ERROR_REPORTING": "false",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "research.tracking.wandb_process", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt at the keyboard must not tear a run that is being written
            cwd=self._scratch,
            env={**os.environ, **own},
        )

    def ask(self, request: Mapping[str, Any], limit: float) -> dict[str, Any]:
        """The answer: ``ok``, and ``warning`` with what is to be told.

        Raises:
            TimeoutError: none within ``limit`` seconds.
            OSError: the process has died.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({**request, "limit": limit}).encode() + b"\n")
        stdin.flush()
        deadline = time.monotonic() + limit
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"no answer within {limit:g} s")
            piece = os.read(stdout.fileno(), _PIECE)
            if not piece:
                raise OSError(f"the mirror's process ended (exit code {self._process.wait(5)})")
            line += piece
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Lets the process end by itself, for 10 s."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(_TO_END)
        self.kill()

    def stop(self) -> None:
        """Ends the process and what it started (W&B's own service); whoever waits for its answer is told. From any thread."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """The same, and removes what they had in hand."""
        self.stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        shutil.rmtree(self._scratch, ignore_errors=True)


# -- inside


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

"""The process that talks to W&B, from outside: requests with a time limit, and an end that leaves nothing behind.

What it does inside is `research.tracking.wandb_worker`."""

from __future__ import annotations

import contextlib
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

from research import package

_PIECE = 1 << 20
_TO_END = 10.0  # seconds


class WorkerProcess:
    """Whatever W&B does in there, this process neither waits longer than asked nor fails by it.

    Args:
        settings: of the tracker, for every request.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        # the worker must find this package also where it was put on the path by hand
        paths = [str(Path(package.__file__).parent.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self._scratch = tempfile.mkdtemp(prefix="research-wandb-")
        own = {
            "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in paths if path),
            "TMPDIR": self._scratch,
            "WANDB_DATA_DIR": self._scratch,
            "WANDB_CACHE_DIR": self._scratch,
            "WANDB_ERROR_REPORTING": "false",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "research.tracking.wandb_worker", json.dumps(settings)],
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

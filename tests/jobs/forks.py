"""Many runs of ``research`` in processes of their own, without the seconds that each would spend on imports.

One process runs a command once, on one thread, and so imports whatever that needs; then it forks a child for each further
command, the leader of a process group of its own. The children are real processes, which are really killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import research


class Forks:
    """Starts and kills runs of the command in a working folder.

    Args:
        cwd: the working folder.
        first: the command that is run once beforehand, in a folder ``first`` of its own.
    """

    def __init__(self, cwd: Path, first: Sequence[str]):
        self.cwd = cwd
        roots = os.pathsep.join(map(str, (Path(research.__file__).parents[1], Path(__file__).parents[1])))
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": roots, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._ask({"do": "first", "argv": [*first, "output_dir=first"]}) == 0

    def start(self, argv: Sequence[str], log: str = "log") -> int:
        """Start a run; its output goes to a file of the working folder. Returns its process id, which is its group's too."""
        return self._ask({"do": "start", "argv": list(argv), "log": log})

    def wait(self, pid: int, timeout: float = 300.0) -> int:
        """The exit code of a run, negative for the signal that ended it."""
        code = self._ask({"do": "wait", "pid": pid, "timeout": timeout})
        assert code is not None, f"process {pid} did not end within {timeout:g} s"
        return code

    def alive(self, pid: int) -> bool:
        return self._ask({"do": "wait", "pid": pid, "timeout": 0.0}) is None

    def run(self, argv: Sequence[str], log: str = "log") -> int:
        return self.wait(self.start(argv, log))

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to the whole process group of a run."""
        os.killpg(pid, number)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(600)

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _main() -> None:
    from support.figures import draw_at_most

    import research.cli
    from research.jobs import process_cache

    draw_at_most(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open("first.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    codes: dict[int, int] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        answer: Any = None
        if asked["do"] == "first":
            answer = research.cli.run(asked["argv"])
            process_cache.clear()  # a child loads its model itself
        elif asked["do"] == "start":
            answer = os.fork() or _child(asked)
        elif asked["do"] == "wait":
            answer = _wait(asked["pid"], asked["timeout"], codes)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _wait(pid: int, timeout: float, codes: dict[int, int]) -> int | None:
    until = time.monotonic() + timeout
    while pid not in codes:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            codes[pid] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() >= until:
            return None
        else:
            time.sleep(0.01)
    return codes[pid]


def _child(asked: dict[str, Any]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    handle = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    import research.cli

    code = 1
    try:
        code = research.cli.run(asked["argv"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _main()

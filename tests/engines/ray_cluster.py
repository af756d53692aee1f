"""A real Ray in a network namespace of its own, which has loopback only: a head without CPUs, and a worker node.

``ray start`` opens its ports on every interface. In the namespace nothing but this test can reach them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HEAD = "127.0.0.1:6379"


def missing() -> list[str]:
    """What a cluster needs and is not here."""
    absent = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    if os.geteuid():
        absent.append("root, for a network namespace")
    return absent


class Ray:
    """Use it as a context manager; `inside` puts a command into its namespace."""

    def __init__(self, folder: Path, env: Mapping[str, str]):
        self.folder, self.log = folder, folder.parent / "ray.log"
        self.holder: subprocess.Popen[bytes] | None = None
        self.env = {
            **os.environ,
            **env,  # tasks run in the environment of their node
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": HEAD,
            "RAY_gcs_server_request_timeout_seconds": "240",
            "RAY_raylet_start_wait_time_s": "240",
        }

    def __enter__(self) -> Ray:
        # the namespace lives as long as this process
        script = "ip link set lo up && echo up && exec sleep 3600"
        self.holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"up\n"
        try:
            self._up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._down()
        if self.holder is not None:
            self.holder.kill()
        if self.holder is not None:
            self.holder.wait(10)

    def inside(self, *command: str) -> list[str]:
        """A command, to be run in the namespace."""
        assert self.holder is not None
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", *command]

    def processes(self) -> list[int]:
        """All processes in the namespace; whatever Ray starts is there."""
        assert self.holder is not None
        found = []
        with contextlib.suppress(OSError):
            mine = os.readlink(f"/proc/{self.holder.pid}/ns/net")
            for place in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if os.readlink(place / "ns" / "net") == mine:
                        found.append(int(place.name))
        return found

    def _up(self) -> None:
        small = ["--object-store-memory=100000000", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
        head = ["--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        for _ in range(3):  # a busy machine lets some of Ray's own time limits pass
            if self._start(*head, *small) and self._start(f"--address={HEAD}", "--num-cpus=2", *small):
                return
            self._down()
        raise AssertionError(self.log.read_text())

    def _down(self) -> None:
        """End whatever Ray has started."""
        for pid in self.processes():
            if self.holder is None or pid != self.holder.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _start(self, *arguments: str) -> bool:
        ray = Path(sys.executable).parent / "ray"
        command = self.inside(str(ray), "start", *arguments)
        with self.log.open("ab") as stream:
            done = subprocess.run(command, env=self.env, stdout=stream, stderr=stream, timeout=300, check=False)
        return done.returncode == 0

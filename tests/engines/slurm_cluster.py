"""A real Slurm on this machine: munged, a slurmctld and two slurmd with a CPU each, as root and without systemd."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue", "sinfo")
_CONF = """
ClusterName=engines
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=10
SchedulerParameters=sched_interval=3,bf_interval=3
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs that are not installed."""
    places = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=places) is None]


class Slurm:
    """Use it as a context manager; commands find it by ``SLURM_CONF`` in `env`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Slurm:
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        host = socket.gethostname()
        ports = _free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 State=UNKNOWN"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        conf = _CONF.format(host=host, port=ports[0], folder=self.folder, nodes=nodes)
        (self.folder / "slurm.conf").write_text(conf)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        try:
            files = {name: self.folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
            places = [f"--{name}-file={files[name]}" for name in ("pid", "log", "seed")]
            self._start(
                "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={files['socket']}", *places
            )
            _wait(files["socket"].exists, 20, "munged")
            self._start("slurmctld", "-D", "-c")
            for node in NODES:
                self.start_node(node)
            _wait(lambda: self.states().count("idle") == len(NODES), 60, "the nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if "slurmctld" in self.processes:
            with contextlib.suppress(Exception):
                self("scancel", "--user=root")
                _wait(lambda: not self("squeue", "--noheader").strip(), 15, "the queue")
        for process in reversed(self.processes.values()):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __call__(self, *command: str) -> str:
        """Run a command of Slurm's and return what it prints."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def start_node(self, node: str) -> None:
        self._start(f"slurmd {node}", "-D", "-b", "-N", node, program="slurmd")

    def kill_node(self, node: str) -> None:
        """The node dies with all that runs on it, as by a power cut."""
        daemon = self.processes.pop(f"slurmd {node}")
        for pid in [*_below(self.steps_of(node)), daemon.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        daemon.wait()

    def steps_of(self, node: str) -> list[int]:
        """The slurmstepd processes of a node; what they started is below them."""
        # a step keeps a socket NODE_JOB.STEP in its node's folder
        jobs = {file.name.removeprefix(f"{node}_").partition(".")[0] for file in self._spool(node).glob(f"{node}_*.*")}
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (place / "cmdline").read_text()
                if any(command.startswith(f"slurmstepd: [{job}.") for job in jobs):
                    found.append(int(place.name))
        return found

    def _spool(self, node: str) -> Path:
        return self.folder / f"spool-{node}"

    def states(self) -> list[str]:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            return self("sinfo", "--noheader", "--Node", "--format=%T").split()
        return []

    def tasks(self) -> dict[str, str]:
        """The state of each task in the queue, by ``JOB_TASK``."""
        lines = self("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def _start(self, name: str, *arguments: str, program: str = "") -> None:
        log = (self.folder / f"{name.replace(' ', '-')}.out").open("ab")
        path = shutil.which(program or name, path=self.env["PATH"])
        assert path is not None
        self.processes[name] = subprocess.Popen(
            [path, *arguments], env=self.env, stdout=log, stderr=log, start_new_session=True
        )


def _below(pids: list[int]) -> list[int]:
    """Processes with all their descendants, the youngest first."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(place.name))
    found = []
    todo = list(pids)
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo.extend(children.get(pid, []))
    return found[::-1]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait(condition, seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what}: not so after {seconds} s"
        time.sleep(0.2)

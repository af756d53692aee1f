"""The engines that run chunks: which launchers there are, how many workers each has, and how each is driven to the end."""

from __future__ import annotations

import contextlib
import logging
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from research.errors import ConfigError
from research.jobs import signals
from research.jobs.machine_slots import cpus

_log = logging.getLogger(__name__)
_LEAST = 4  # jobs that are worth starting a worker of their own on a cluster
_POLL = (0.5, 10.0)  # seconds between two looks at the workers, at first and at most
# Slurm's states of a task that has ended; in any other it runs, or will (requeued tasks are pending again)
_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
}
_ENDED |= {"TIMEOUT", "GONE"}
_TARGETS = {
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher": "joblib",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher": "submitit_local",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": "submitit_slurm",
    "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher": "ray",
}
SAME_MACHINE = ("joblib", "submitit_local")  # whose workers get their devices from us

Redo = Callable[[int], Sequence[str] | None]  # a chunk has ended: the chunk of what is left of it, or None


def name_of(target: str) -> str:
    """A launcher's name in Hydra, or its class where it is none of those known here."""
    return _TARGETS.get(target, target)


def workers(name: str, settings: Any, asked: int | str, n_jobs: int, devices: Sequence[str]) -> int:
    """How many workers a launcher has.

    Args:
        name: of the launcher.
        settings: its config, ``hydra.launcher``.
        asked: ``runtime.workers``: a number, or "auto" for what the launcher's own settings and the machine say.
        n_jobs: that are to be run.
        devices: GPUs of this machine; one worker each.
    """
    if isinstance(asked, int):
        return asked
    here = cpus()
    if name == "joblib":
        given = int(settings.n_jobs)
        # joblib counts back from all: -1 is every CPU, -2 all but one
        return given if given > 0 else len(devices) or max(1, here + 1 + given)
    if name == "submitit_local":
        return len(devices) or here
    if name == "submitit_slurm":
        return min(int(settings.array_parallelism), -(-n_jobs // _LEAST))
    if name == "ray":
        return min(_ray_slots(settings.ray), -(-n_jobs // _LEAST))
    return n_jobs


def _join_ray(settings: Any) -> Any:
    """The module ray, connected to the cluster that ``hydra.launcher.ray.init`` says, or to one started here.

    The plugin would connect too, but with a size of object store, which a cluster that runs already refuses.

    Raises:
        ConfigError: there is no such cluster.
    """
    import ray

    if not ray.is_initialized():
        init = OmegaConf.to_container(settings.init, resolve=True)
        assert isinstance(init, dict)
        try:
            ray.init(**{str(key): value for key, value in init.items()})
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"hydra.launcher.ray.init: {_first_line(error).rstrip('.')}. Accepted is the address of a running head "
                "(ray start --head), or null for a cluster of this machine alone."
            ) from error
    return ray


def _ray_slots(settings: Any) -> int:
    """How many tasks a Ray cluster runs at a time.

    Raises:
        ConfigError: there is no such cluster, or nothing in it can run a task.
    """
    ray = _join_ray(settings)
    remote = OmegaConf.to_container(settings.remote, resolve=True)
    assert isinstance(remote, dict)
    there = ray.cluster_resources()
    needed = {"CPU": remote.get("num_cpus", 1), "GPU": remote.get("num_gpus") or 0}
    slots = [int(there.get(kind, 0) / amount) for kind, amount in needed.items() if amount]
    if slots and not min(slots):
        raise ConfigError(
            f"hydra.launcher.ray.remote: found {needed}; the cluster has {there.get('CPU', 0):g} CPUs and "
            f"{there.get('GPU', 0):g} GPUs, so that no task could ever run."
        )
    return max(1, min(slots, default=1))


def run(
    name: str, launcher: Any, points: Sequence[Sequence[str]], count: int, redo: Redo, look: Callable[[], None]
) -> list[str]:
    """Give chunks to a launcher and come back when it is through with them.

    Args:
        name: of the launcher.
        launcher: set up with the task function.
        points: the overrides that name a chunk each.
        count: how many workers there may be at a time.
        redo: asked with a chunk's place in `points` when its worker has ended, where the engine can start it again beside others.
        look: called now and then, where workers write to files and not to this terminal.

    Returns:
        What workers or the engine said went wrong, a line each.
    """
    if name.startswith("submitit"):
        return _Submitted(launcher, points, count, redo, look).run()
    if name == "ray":
        _join_ray(launcher.ray_cfg)
    try:
        returned = launcher.launch([list(point) for point in points], initial_job_idx=0)
    except KeyboardInterrupt:
        raise
    except Exception as error:  # a worker's death, in each engine's own words
        return [_first_line(error)]
    return [line for value in returned if (line := _said(value))]


def _said(returned: Any) -> str | None:
    """What kept a worker from ending its chunk."""
    try:
        value = returned.return_value
    except Exception as error:
        return _first_line(error)
    return value.get("stopped") if isinstance(value, Mapping) else None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next((line for line in str(error).splitlines() if line.strip()), '')}"


class _Submitted:
    """Workers that submitit starts, watched one by one, where the plugin's own loop gives all up when one dies."""

    def __init__(
        self, launcher: Any, points: Sequence[Sequence[str]], count: int, redo: Redo, look: Callable[[], None]
    ):
        self.launcher, self.points, self.count = launcher, [list(p) for p in points], count
        self.redo, self.look = redo, look
        self.slurm = launcher._EXECUTOR == "slurm"
        self.executor = self._executor()
        self.alive: dict[int, Any] = {}  # submitit's job of each chunk
        self.said: list[str] = []

    def run(self) -> list[str]:
        waiting = list(range(len(self.points)))
        pause = _POLL[0]
        try:
            while waiting or self.alive:
                # Slurm limits by itself how many tasks of an array run at a time
                free = len(waiting) if self.slurm else self.count - len(self.alive)
                if starting := waiting[:free]:
                    waiting = waiting[len(starting) :]
                    self.alive.update(zip(starting, self._submit(starting), strict=True))
                signals.wait(pause)
                self.look()
                ended = self._ended()
                pause = _POLL[0] if ended else min(1.5 * pause, _POLL[1] if self.slurm else 2.0)
                for place in ended:
                    self._note(self.alive.pop(place))
                    if (again := self.redo(place)) is not None:
                        self.points[place] = list(again)
                        waiting.append(place)
        except KeyboardInterrupt:
            for job in self.alive.values():
                with contextlib.suppress(Exception):
                    job.cancel()
            raise
        return self.said

    def _executor(self) -> Any:
        import submitit
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

        kind, params = self.launcher._EXECUTOR, dict(self.launcher.params)
        folder = params.pop("submitit_folder")
        init = {f"{kind}_max_num_timeout": params.pop("max_num_timeout")} if "max_num_timeout" in params else {}
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=kind, **init)
        except RuntimeError as error:
            raise ConfigError(
                f"hydra/launcher: submitit_{kind}: {_first_line(error)}; accepted is a machine on which sbatch and srun work."
            ) from error
        shared = set(OmegaConf.structured(BaseQueueConf).keys())
        executor.update_parameters(
            **{key if key in shared else f"{kind}_{key}": value for key, value in params.items()}
        )
        return executor

    def _submit(self, places: Sequence[int]) -> list[Any]:
        from hydra.core.singleton import Singleton

        state = Singleton.get_state()
        rows = [(self.points[k], "hydra.sweep.dir", k, f"chunk_{k}", state) for k in places]
        jobs: list[Any] = self.executor.map_array(self.launcher, *zip(*rows, strict=True))
        if self.slurm:
            _log.info("Slurm array %s: %d tasks", jobs[0].job_id.partition("_")[0], len(jobs))
        return jobs

    def _ended(self) -> list[int]:
        if not self.slurm:
            return [place for place, job in self.alive.items() if job._process.poll() is not None]
        states = _slurm_states({job.job_id.partition("_")[0] for job in self.alive.values()})
        if states is None:
            return []
        return [place for place, job in self.alive.items() if states.get(job.job_id, "GONE") in _ENDED]

    def _note(self, job: Any) -> None:
        """Take what a worker said at its end; one that was killed has said nothing."""
        if not job.paths.result_pickle.exists():
            self.said.append(f"worker {job.job_id} ended without a word; see {job.paths.stderr}")
            return
        with contextlib.suppress(Exception):
            status, value = job._get_outcome_and_result()
            if line := value.strip().splitlines()[-1] if status == "error" else _said(value):
                self.said.append(line)


def _slurm_states(arrays: set[str]) -> dict[str, str] | None:
    """The states of arrays' tasks by ``JOB_TASK``; None if the controller does not answer. Accounting need not be set up."""
    command = [
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        "--format=%i|%T",
        f"--jobs={','.join(sorted(arrays))}",
    ]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.warning("squeue: %s; asked again", _first_line(error))
        return None
    if asked.returncode and "Invalid job id" not in asked.stderr:
        _log.warning("squeue: %s; asked again", asked.stderr.strip())
        return None
    return dict(line.strip().split("|", 1) for line in asked.stdout.splitlines() if "|" in line)

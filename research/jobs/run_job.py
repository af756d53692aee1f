"""One job: sample its images, score them, keep the record. `LoopSampler` is called as in a notebook: same seeds, same images."""

from __future__ import annotations

import logging
import statistics
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from research import caches
from research.errors import UserError
from research.jobs import environment, images, job_images, process_cache
from research.jobs.batching import best_batch_size
from research.jobs.build import build, guidance_of
from research.jobs.checkpoint import Checkpoint
from research.jobs.claims import ClaimLost
from research.jobs.faults import batches_that_fit, check_claim
from research.jobs.job import Job as Job
from research.jobs.scoring import ask
from research.jobs.store import IMAGES, PICTURES, StoreError
from research.jobs.timing import Stopwatch, peak_memory_bytes, reset_peak_memory
from research.metrics.base import as_metric

if TYPE_CHECKING:
    from research.sampling import LoopSampler, SampleResult

Observer = Callable[[int, int, str], None]

_log = logging.getLogger(__name__)


def run_job(job: Job, observer: Observer | None = None) -> dict[str, Any]:
    """Run a job and return its result, as it stands in ``result.json``.

    A job that fails gets a result too, with its error in a line, and its stack in ``traceback.txt``.

    Raises:
        StoreError: the output folder cannot be written, so that no result can be kept.
        KeyboardInterrupt: the job is not done; run again, it goes on after its last complete batch, or starts anew.
        ClaimLost: another process has taken the job over.
    """
    if environment.world() > 1:
        from research.jobs.engines import ranks

        return ranks.run_job(job, observer)
    record = Record(job, observer)
    record.begin()
    return record.conclude(record.sample)


def one_line(error: BaseException) -> str:
    """An error as a line: a `UserError` says it itself, others with their class; notes say where it happened."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    if not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return "; ".join([text, *getattr(error, "__notes__", [])])


class Record:
    """A job on its way, and the result as it grows."""

    def __init__(self, job: Job, observer: Observer | None = None):
        self.job, self.config, self.folder = job, job.config, job.folder
        self.observer: Observer = observer or (lambda done, total, where: None)
        self.watch = Stopwatch()
        self.caches = caches.counts()
        self.device: Any = None
        self.saved = images.Saved()
        self.checkpoint = Checkpoint(job)
        self.trace: dict[str, Any] = {}
        self.seeds, self.prompts = job_images.seeds(self.config), job_images.prompts(self.config)
        self.result: dict[str, Any] = {
            "job_id": job.id,
            "identity": job.digest,
            "status": "failed",
            "error": None,
            "sweep_name": self.config["sweep_name"],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "overrides": job.overrides,
            "config": self.config,
            "metrics": {},
            "metrics_info": {},
            "timings": {},
            "images_per_second": None,
            "nfe": None,
            "nfe_by_branch": {},
            "n_images": len(self.seeds),
            "seeds": self.seeds,
            "images": [],
            "pictures": {},
            "truncated": [],
            "warnings": list(job.warnings),
            "out_of_memory": [],  # batches that did not fit
            "weights_sha256": None,
            "versions": environment.versions(),
            "git_commit": environment.git_commit(),
            "device": None,
            "worker": environment.worker,  # null where no launcher started this process
            "peak_memory_bytes": None,
            "batch_size": None,  # images at a time, of all jobs in the batch
            "together": [],  # ids of the jobs whose images shared batches with this one's, itself among them
            "caches": {},
        }

    def begin(self) -> None:
        """Make the job's folder ready.

        Raises:
            StoreError: it cannot be written.
        """
        try:
            self.checkpoint.begin()
        except OSError as error:
            said = error.strerror or error
            raise StoreError(f"output_dir: {self.folder.path} cannot be written: {said}.") from error

    def conclude(self, sample: Callable[[], None]) -> dict[str, Any]:
        """Sample, score and keep the result; see `run_job`."""
        try:
            sample()
            self.score()
            self.result["status"] = "done"
        except (StoreError, ClaimLost):
            raise
        except Exception as error:
            check_claim(self.folder.path)
            self.folder.write_traceback(traceback.format_exc())
            self.result.update(status="failed", error=one_line(error), images=[], pictures={}, n_images=0)
        self.finish()
        return self.result

    def sample(self) -> None:
        # the plugs first: what is wrong with them should not cost the loading of a model
        sampler = self.sampler(guidance_of(self.config))
        self.use(sampler.model)
        self.checkpoint.go_on(self)
        task = self.task(sampler.model)
        size = self.batch_size(sampler, task, len(self.seeds))
        batches = batches_that_fit(
            sampler,
            task,
            seeds=self.seeds,
            steps=self.config["steps"],
            size=size,
            first=len(self.saved),
            progress=self._progress(size),
            halved=self.halved,
        )
        for rows, result in batches:
            self.keep(result, rows)
            self.checkpoint.between_batches(self)
        self.draw(sampler, task)

    def draw(self, sampler: LoopSampler, task: Any) -> None:
        """Write the further pictures that task and hooks make of all images."""
        for name, picture in sampler.pictures(task, self.saved).items():
            file = images.save_picture(picture, self.folder.path / PICTURES / name)
            self.result["pictures"][name] = file.relative_to(self.folder.path).as_posix()

    def score(self) -> None:
        spent = self.watch.seconds["encode"] + self.watch.seconds["denoise"] + self.watch.seconds["decode"]
        self.result["images_per_second"] = round(len(self.seeds) / spent, 4) if spent else None
        measured = [entry["scores"] for entry in self.result["images"] if "scores" in entry]
        for key in measured[0] if measured else ():  # by the task itself
            self.result["metrics"][key] = statistics.fmean(scores[key] for scores in measured)
            self.result["metrics_info"][key] = {"mean over images": len(measured)}
        for key, node in self.config["metrics"].items():
            self.observer(0, 0, f"scoring {key}")
            metric = as_metric(build(node, f"metrics.{key}"), key)
            with self.watch.phase("metrics", self.device):
                found = self.measure(key, metric)
            self.result["metrics"].update(found.values)
            self.result["metrics_info"][metric.name] = found.info
            _add_new(self.result["warnings"], found.info.get("warnings", []))

    def measure(self, name: str, metric: Any) -> Any:
        """What a metric says of all images."""
        return ask(self.config, name, metric, self.saved, self.prompts, self.seeds, self.device, self.folder)

    def finish(self) -> None:
        """Write the trace and, last, the result; then let the tracker mirror the files."""
        self.result["timings"] = self.watch.timings()
        self.result["caches"] = caches.since(self.caches)
        if self.device is not None:
            self.result["peak_memory_bytes"] = peak_memory_bytes(self.device)
        check_claim(self.folder.path)
        self.folder.write_trace({**self.trace, "warnings": self.result["warnings"]})
        self.folder.write_result(self.result)
        try:
            tracker = process_cache.tracker(self.config["tracker"])
            if tracker is not None:
                tracker.log_job(self.folder.path)
        except Exception as error:
            _log.warning("tracker: %s; the local files are whole", one_line(error))

    # -- parts of sampling

    def halved(self, event: dict[str, Any]) -> None:
        self.result["out_of_memory"].append(event)
        said = f"out of memory with batches of {event['batch_size']}; made in batches of {event['halved_to']}"
        _add_new(self.result["warnings"], [said])

    def sampler(self, guidance: Any) -> LoopSampler:
        """The sampler that the config says, with a guidance."""
        from research.solvers import SchedulerSpec

        LoopSampler = process_cache.libraries()
        process_cache.set_threads(self.config["runtime"]["threads"])
        hooks = [build(node, f"hooks.{name}") for name, node in self.config["hooks"].items()]
        with self.watch.phase("load"):
            model, loaded = process_cache.model(self.config["model"])
        if not loaded:
            self.watch.seconds["load"] = 0.0
        scheduler = self.config["scheduler"]
        return LoopSampler(
            model,
            scheduler=SchedulerSpec(scheduler["name"], scheduler["class_name"], scheduler["options"]),
            guidance=guidance,
            hooks=hooks,
            parity=self.config["runtime"]["parity"],
        )

    def use(self, model: Any) -> None:
        """Note what the job is made with."""
        self.device = model.device
        reset_peak_memory(self.device)
        self.result.update(
            weights_sha256=model.weights_sha256,
            device=environment.device_name(self.device),
            dtype=str(model.dtype).removeprefix("torch."),
        )

    def task(self, model: Any) -> Any:
        task = build(self.config["task"], "task", **job_images.task_arguments(self.config))
        task.check(model, len(self.seeds))
        return task

    def batch_size(self, sampler: LoopSampler, task: Any, count: int) -> int:
        """Images at a time, of ``count``."""
        asked = self.config["batch_size"]
        if asked == "auto":
            asked = best_batch_size(sampler, task, self.seeds, self.config["steps"], count)
        self.result["batch_size"] = found = min(asked, count)
        return found

    def _progress(self, size: int) -> Callable[[int, int, Mapping[str, Any]], None]:
        n_batches = -(-len(self.seeds) // size)

        def report(done: int, total: int, info: Mapping[str, Any]) -> None:
            batch = info["rows"][0] // size
            self.observer(batch * total + done, n_batches * total, f"batch {batch + 1} of {n_batches}")

        return report

    def keep(self, result: SampleResult, rows: range) -> None:
        """Write a batch's images, now that it is complete, and add its counts."""
        self.watch.add(result.timings)
        recipes = self._recipes(rows)
        for place, (row, image, recipe) in enumerate(zip(rows, result.images, recipes, strict=True)):
            name = f"{IMAGES}/{row:05d}_seed{self.seeds[row]}.png"
            digest = self.saved.add(image, self.folder.path / name, recipe)
            entry = {"file": name, "seed": self.seeds[row], "prompt": recipe["prompt"], "sha256": digest}
            scores = {key: numbers[place] for key, numbers in result.scores.items()}
            self.result["images"].append({**entry, **({"scores": scores} if scores else {})})
        by_branch = self.result["nfe_by_branch"]
        self.result["nfe_by_branch"] = {
            branch: max(by_branch.get(branch, 0), count) for branch, count in result.nfe_by_branch.items()
        }
        self.result["nfe"] = max(self.result["nfe"] or 0, result.nfe)
        _add_new(self.result["truncated"], result.truncated)
        _add_new(self.result["warnings"], result.warnings)
        if tensors := result.trace.pop("tensors", None):
            result.trace["tensors"] = self.folder.write_tensors(f"{rows[0]:05d}", tensors)
        trace = {**result.trace, "timings": {"n_images": len(rows), **result.timings}}
        if self.trace:
            self.trace.setdefault("batches", []).append({k: v for k, v in trace.items() if k != "stages"})
        self.trace = self.trace or trace

    def _recipes(self, rows: range) -> Iterator[dict[str, Any]]:
        shared = {
            "negative_prompt": self.config["task"].get("negative_prompt"),
            "steps": self.config["steps"],
            "model": {
                **self.config["model"],
                "weights_sha256": self.result["weights_sha256"],
                "dtype": self.result["dtype"],
            },
            **{key: self.config[key] for key in ("scheduler", "guidance", "task", "hooks")},
            "parity": self.config["runtime"]["parity"],
            "job_id": self.job.id,
            "versions": self.result["versions"],
        }
        for row in rows:
            yield {"prompt": self.prompts[row] if self.prompts else None, "seed": self.seeds[row], **shared}


def _add_new(known: list[Any], more: Sequence[Any]) -> None:
    known.extend(entry for entry in more if entry not in known)

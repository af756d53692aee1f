"""One job: sample its images, score them, keep the record. `LoopSampler` is called as in a notebook: same seeds, same images."""

from __future__ import annotations

import logging
import statistics
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from research import caches, pictures
from research.errors import ConfigError, one_line
from research.jobs import environment, images, job_images, process_cache, record
from research.jobs.batching import best_batch_size
from research.jobs.build import build, guidance_of, sampler_of, sigmas_of
from research.jobs.checkpoint import CheckpointFile
from research.jobs.claims import ClaimLost, FolderGone
from research.jobs.faults import batches_that_fit, check_claim
from research.jobs.identity import sources_of
from research.jobs.job import Job
from research.jobs.progress import StepsMade
from research.jobs.record import CacheUse, HalvedBatch, ImageRecord, JobResult, MadeSoFar, StoreError, Trace
from research.jobs.repeats import time_again
from research.jobs.schema import MODEL_LEVELS
from research.jobs.scoring import ask
from research.jobs.store import IMAGES, PICTURES
from research.jobs.timing import Stopwatch, peak_memory_bytes, reset_peak_memory
from research.metrics.base import as_metric

if TYPE_CHECKING:
    import torch

    from research.metrics.base import Metric, MetricResult
    from research.sampling import LoopSampler, SampleResult
    from research.sampling.interfaces import Guidance, Model, Task
    from research.sampling.result import BatchSampler

Observer = Callable[[int, int, str], None]  # steps done, steps in all, and where that is

_log = logging.getLogger(__name__)


class JobRunner(Protocol):
    """A way to run jobs: `OneByOne`, `SharedBatches`, or `OverRanks` in the processes that ``torchrun`` started. `run_jobs` is
    handed one and asks nothing else how jobs are run."""

    def units(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """The jobs in groups that are claimed and run as one, in the order in which they should run."""
        ...

    def run(self, unit: Sequence[Job], observer: Observer | None = None) -> list[JobResult]:
        """Run the jobs of a unit and return their results, in their order; see `run_job` for what is raised."""
        ...


class OneByOne:
    """Each job by itself, as `run_job` runs it."""

    def units(self, jobs: Sequence[Job]) -> list[list[Job]]:
        return [[job] for job in jobs]

    def run(self, unit: Sequence[Job], observer: Observer | None = None) -> list[JobResult]:
        return [run_job(job, observer) for job in unit]


def run_job(job: Job, observer: Observer | None = None) -> JobResult:
    """Run a job in this process and return its result, as it stands in ``result.json``.

    A job that fails gets a result too, with its error in a line, and its stack in ``traceback.txt``.

    Raises:
        StoreError: the output folder cannot be written, so that no result can be kept.
        KeyboardInterrupt: the job is not done; run again, it goes on after its last complete batch, or starts anew.
        ClaimLost: another process has taken the job over.
        FolderGone: the folder, or images in it, were taken away meanwhile.
    """
    run = JobRun(job, observer)
    run.prepare_folder()
    return run.conclude(run.sample)


class JobRun:
    """A job on its way, and the result as it grows."""

    def __init__(self, job: Job, observer: Observer | None = None):
        self.job, self.settings, self.folder = job, job.settings, job.folder
        self.observer: Observer = observer or (lambda done, total, where: None)
        self.watch = Stopwatch()
        self.caches = caches.counts()
        self.device: torch.device | None = None
        self.saved = images.SavedImages()
        self.checkpoint = CheckpointFile(job)
        self.trace = Trace()
        self.seeds, self.prompts = job_images.seeds(job.config), job_images.prompts(job.config)
        self.result = JobResult(
            job_id=job.id,
            identity=job.digest,
            status="failed",
            sweep_name=self.settings.sweep_name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            overrides=job.overrides,
            config=job.config,
            n_images=len(self.seeds),
            seeds=self.seeds,
            warnings=list(job.warnings),
            versions=dict(environment.versions()),
            plug_sources=dict(job.sources),
            git_commit=environment.git_commit(),
            worker=environment.worker,
        )

    def prepare_folder(self) -> None:
        """Make the job's folder ready.

        Raises:
            StoreError: it cannot be written.
        """
        try:
            self.checkpoint.prepare_folder()
        except OSError as error:
            raise StoreError(f"output_dir: {self.folder.path} cannot be written: {error.strerror or error}.") from error

    def conclude(self, sample: Callable[[], None]) -> JobResult:
        """Sample, score and keep the result; see `run_job`."""
        try:
            return self._conclude(sample)
        except StoreError as error:
            check_claim(self.folder.path)  # which says it where the folder is gone
            if isinstance(error.__cause__, FileNotFoundError):
                self._check_images()
            raise

    def _conclude(self, sample: Callable[[], None]) -> JobResult:
        try:
            sample()
            self.score()
            self.result.status = "done"
        except (StoreError, ClaimLost):
            raise
        except Exception as error:
            check_claim(self.folder.path)
            self._check_images()
            self.folder.write_traceback(traceback.format_exc())
            self.result.status, self.result.error = "failed", one_line(error)
            self.result.images, self.result.pictures, self.result.n_images = [], {}, 0
        self.keep_result()
        return self.result

    def sample(self) -> None:
        """Make the images, batch by batch."""
        # the plugs first: what is wrong with them should not cost the loading of a model
        sampler = self.sampler(guidance_of(self.job.config))
        self.note_model(sampler.model)
        self.checkpoint.resume(self)
        task = self.task(sampler.model)
        size = self.batch_size(sampler, task, len(self.seeds))
        images = max(1, size // sampler.candidates)
        progress = StepsMade(self.observer, len(self.seeds), images, self.settings.steps)
        batches = batches_that_fit(
            sampler,
            task,
            seeds=self.seeds,
            steps=self.settings.steps,
            size=size,
            first=len(self.saved),
            progress=progress,
            halved=self.note_halved,
        )
        for rows, result in batches:
            self.keep_batch(result, rows)
            self.checkpoint.between_batches(self)
        progress.complete()
        self.keep_pictures(sampler, task)
        self.time_again(sampler, task)

    def score(self) -> None:
        """Measure the images: what the task measured while it sampled, and each metric of the config."""
        spent = self.watch.seconds["encode"] + self.watch.seconds["denoise"] + self.watch.seconds["decode"]
        self.result.images_per_second = round(len(self.seeds) / spent, 4) if spent else None
        self.result.metrics, self.result.metrics_info = task_scores(self.result.images)
        for key, node in self.settings.metrics.items():
            self.observer(0, 0, f"scoring {key}")
            metric = as_metric(build(node, f"metrics.{key}"), key)
            with self.watch.phase("metrics", self.device):
                found = self.measure(key, metric)
            self.result.metrics.update(found.values)
            self.result.metrics_info[metric.name] = found.info
            self.result.add(MadeSoFar(warnings=found.info.get("warnings", [])))

    def measure(self, name: str, metric: Metric) -> MetricResult:
        """What a metric says of all images."""
        return ask(self.job.config, name, metric, self.saved, self.prompts, self.seeds, self.device, self.folder)

    def keep_result(self) -> None:
        """Write the trace and, last, the result; then let the tracker mirror the files."""
        self.result.timings = self.watch.timings()
        self.result.caches = {name: CacheUse(**use) for name, use in caches.since(self.caches).items()}
        if self.device is not None:
            self.result.peak_memory_bytes = peak_memory_bytes(self.device)
        check_claim(self.folder.path)
        record.write_trace(self.folder.path, msgspec.structs.replace(self.trace, warnings=self.result.warnings))
        self.folder.write_result(self.result)
        try:
            tracker = process_cache.tracker(self.settings.tracker)
            if tracker is not None:
                tracker.log_job(self.folder.path)
        except Exception as error:
            _log.warning("tracker: %s; the local files are whole", one_line(error))

    def _check_images(self) -> None:
        """See that what was made is still there: it is another thing to fail, and to be robbed."""
        for image in self.result.images:
            if not (self.folder.path / image.file).exists():
                raise FolderGone(f"{self.folder.path / image.file} was taken away while its job ran")

    # -- parts of sampling

    def sampler(self, guidance: Guidance) -> BatchSampler:
        """The sampler that the config says, with a guidance."""
        check_unchanged(self.job)
        from research.solvers import SchedulerSpec

        sampler_class = process_cache.libraries()
        process_cache.set_threads(self.settings.runtime.threads)
        pictures.limit_pixels(self.settings.runtime.max_pixels)
        hooks = [build(node, f"hooks.{name}") for name, node in self.settings.hooks.items()]
        with self.watch.phase("load"):
            model, loaded = process_cache.model(self.job.config["model"])
        if not loaded:
            self.watch.seconds["load"] = 0.0
        asked = self.settings.scheduler
        found: LoopSampler = sampler_class(
            model,
            scheduler=SchedulerSpec(asked.name, asked.class_name, asked.options),
            guidance=guidance,
            hooks=hooks,
            parity=self.settings.runtime.parity,
            sigmas=sigmas_of(self.job.config),
        )
        return sampler_of(self.job.config, loop=found) or found

    def note_model(self, model: Model) -> None:
        """Note what the job is made with."""
        self.device = model.device
        reset_peak_memory(self.device)
        self.result.weights_sha256 = model.weights_sha256
        self.result.model_commit = getattr(model, "commit", None)  # a network of one's own has none
        self.result.device = environment.device_name(self.device)
        self.result.dtype = str(model.dtype).removeprefix("torch.")

    def note_inputs(self) -> None:
        """Note what is in the picture files that the job names: a name may stand for another file one day."""
        found = pictures.hashes("task", self.settings.task)
        for name, node in self.settings.hooks.items():
            found |= pictures.hashes(f"hooks.{name}", node)
        self.result.inputs = found

    def task(self, model: Model) -> Task:
        """The task that the config says, checked against the model, and ready to show what came of it."""
        self.note_inputs()
        task: Task = build(self.settings.task, "task", **job_images.task_arguments(self.job.config))
        task.check(model, len(self.seeds))
        # not left to the sampler: where all batches were made before, there is none to make the task ready
        task.prepare(model, len(self.seeds), parity=self.settings.runtime.parity)
        return task

    def batch_size(self, sampler: BatchSampler, task: Task, count: int) -> int:
        """Images at a time, of ``count``; candidates of a sampler that makes several of each."""
        asked, together = self.settings.batch_size, min(sampler.images_together, count)
        count *= sampler.candidates
        if isinstance(asked, str):
            asked = max(best_batch_size(sampler.loop, task, self.seeds, self.settings.steps, count), together)
        self.result.batch_size = found = min(asked, count)
        return found

    def note_halved(self, event: dict[str, Any]) -> None:
        """Note that a batch did not fit."""
        halved = HalvedBatch(**event)
        warning = f"out of memory with batches of {halved.batch_size}; made in batches of {halved.halved_to}"
        self.result.add(MadeSoFar(out_of_memory=[halved], warnings=[warning]))

    def keep_batch(self, result: SampleResult, rows: range) -> None:
        """Write a batch's images, now that it is complete, and add its counts."""
        self.watch.add(result.timings)
        if compiling := result.timings.get("compile"):
            _log.info("model.compile: %.0f s of compiling", compiling)
        entries = []
        recipes = self._recipes(rows)
        for place, (row, image, recipe) in enumerate(zip(rows, result.images, recipes, strict=True)):
            name = f"{IMAGES}/{row:05d}_seed{self.seeds[row]}.png"
            digest = self.saved.add(image, self.folder.path / name, recipe)
            scores: dict[str, float | None] = {key: numbers[place] for key, numbers in result.scores.items()}
            entries.append(
                ImageRecord(file=name, seed=self.seeds[row], prompt=recipe["prompt"], sha256=digest, scores=scores)
            )
        self.result.add(
            MadeSoFar(
                images=entries,
                nfe=result.nfe,
                nfe_by_branch=result.nfe_by_branch,
                score_evaluations=result.score_evaluations,
                decoder_calls=result.decoder_calls,
                gradient_evaluations=result.gradient_evaluations,
                truncated=result.truncated,
                warnings=result.warnings,
            )
        )
        kept = dict(result.trace)
        if tensors := kept.pop("tensors", None):
            kept["tensors"] = self.folder.write_tensors(f"{rows[0]:05d}", tensors)
        self.trace.add_batch(Trace.of({**kept, "timings": {"n_images": len(rows), **result.timings}}))

    def keep_pictures(self, sampler: BatchSampler, task: Task) -> None:
        """Write the further pictures that task and hooks make of all images."""
        for name, picture in sampler.pictures(task, self.saved).items():
            file = images.save_picture(picture, self.folder.path / PICTURES / name)
            self.result.pictures[name] = file.relative_to(self.folder.path).as_posix()

    def time_again(self, sampler: BatchSampler, task: Task) -> None:
        """Run the first batch, and one image, again for their seconds, where that is asked for. The job's own do not hold it."""
        asked = self.settings.runtime
        if not (asked.repeats or asked.latency):
            return

        def between() -> None:
            self.observer(0, 0, "timing")
            self.checkpoint.between_batches(self)

        self.watch.pause()
        try:
            self.result.timed = time_again(
                sampler,
                task,
                seeds=self.seeds,
                steps=self.settings.steps,
                batch=int(self.trace.timings.get("n_images") or self.result.batch_size or 1),
                repeats=asked.repeats,
                latency=asked.latency,
                at_once=self.result.batch_size if sampler.candidates > 1 else None,
                between=between,
            )
        except (StoreError, ClaimLost):
            raise
        except Exception as error:  # the pictures are there, and as good without it
            self.result.add(MadeSoFar(warnings=[f"runtime.repeats: was not timed again: {one_line(error)}"]))
        finally:
            self.watch.resume()

    def _recipes(self, rows: range) -> Iterator[dict[str, Any]]:
        config = self.job.config
        shared = {
            "negative_prompt": config["task"].get("negative_prompt"),
            "steps": config["steps"],
            "model": {**config["model"], "weights_sha256": self.result.weights_sha256, "dtype": self.result.dtype},
            **{key: config[key] for key in ("scheduler", "guidance", "task", "hooks")},
            "sigmas": config.get("sigmas") or MODEL_LEVELS,
            **({"sampler": config["sampler"]} if "_target_" in (config.get("sampler") or {}) else {}),
            "parity": self.settings.runtime.parity,
            "job_id": self.job.id,
            "versions": self.result.versions,
        }
        for row in rows:
            own: dict[str, Any] = {"prompt": self.prompts[row] if self.prompts else None, "seed": self.seeds[row]}
            negative = config["task"].get("negative_prompt")
            if isinstance(negative, list) and len(negative) == len(self.seeds):  # one an image
                own |= {"negative_prompt": negative[row], "task": {**config["task"], "negative_prompt": negative[row]}}
            yield {**shared, **own}


def check_unchanged(job: Job) -> None:
    """See that the plugs of the user's own are those that the job was planned with: a worker may read them much later.

    Raises:
        ConfigError: they are not, so that its id would name something else than what ran.
    """
    now = sources_of(job.config)
    if changed := [target for target in sorted({*now, *job.sources}) if now.get(target) != job.sources.get(target)]:
        raise ConfigError(
            f"{changed[0]}: its source was changed after the jobs were planned; the same command plans them anew."
        )


def task_scores(entries: Sequence[ImageRecord]) -> tuple[dict[str, float | None], dict[str, dict[str, Any]]]:
    """The means of what a task measured of each image while it sampled, and of how many images they are."""
    measured = [image.scores for image in entries if image.scores]
    if not measured:
        return {}, {}
    values: dict[str, float | None] = {}
    for key in measured[0]:
        values[key] = statistics.fmean(score for scores in measured if (score := scores.get(key)) is not None)
    return values, {key: {"mean over images": len(measured)} for key in values}

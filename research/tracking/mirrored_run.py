"""A job's folder as what a W&B run of it holds: settings, numbers, curve, images, a row an image. Plain data, made the same way
whenever and wherever the folder is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from research.jobs.record import Config, DamagedRecord, ImageRecord, JobResult, NoRecord, read_result, read_trace
from research.labels import is_number
from research.tracking.scrub import is_secret, scrub, scrub_text

FORMAT = 1  # raised when records of old jobs are to be sent again
DIGEST = "mirror/digest"  # of the whole record: what a server holds once all of it has arrived
MEDIA = "mirror/media"  # of images and tables, logged beside them

NAME_AT_MOST, TAG_AT_MOST, PROMPTS_AT_MOST, LIST_AT_MOST = 100, 64, 16, 16

# settings that decide neither images nor numbers
_LEFT_OUT = {"output_dir", "sweep_name", "resume", "retry", "on_failure", "tracker", "hydra", "sweep", "experiment"}
_LEFT_OUT_RUNTIME = {"progress", "claim_timeout", "grace", "workers"}


@dataclass(frozen=True)
class MirroredRun:
    """What is logged of a job. Keys group by what stands before their slash."""

    run_id: str
    job_id: str
    name: str
    group: str
    job_type: str
    tags: list[str]
    commit: str | None
    done: bool
    config: dict[str, Any]
    curve: list[dict[str, float]]  # one point a stage
    images: list[dict[str, Any]]  # file, caption, sha256
    columns: list[str]
    samples: list[list[Any]]  # one row an image
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The names of all images, shown or not."""
        return [str(row[0]) for row in self.samples]

    @property
    def has_media(self) -> bool:
        return bool(self.images or self.samples)

    @property
    def media(self) -> str:
        """Hash of the images and the table, 16 hex digits."""
        return _hash([[image["sha256"], image["caption"]] for image in self.images], self.columns, self.samples)

    @property
    def digest(self) -> str:
        """Hash of all that is logged, 16 hex digits."""
        named = (self.name, self.group, self.job_type, self.tags, self.commit)
        return _hash(FORMAT, named, self.config, self.curve, self.summary, self.media)


def mirrored_run(job: Path, *, tags: list[str] | None = None, max_images: int = 16) -> MirroredRun:
    """The record of a finished job, done or failed, as a run.

    Args:
        job: its folder.
        tags: added to its own.
        max_images: the first so many are shown; all are in the table.

    Raises:
        NoRecord: the job has not ended.
        DamagedRecord: a file of its record is not what a job writes, or an image is a link out of its folder.
    """
    return run_of(job, read_result(job), tags=tags, max_images=max_images)


def run_of(job: Path, result: JobResult, *, tags: list[str] | None = None, max_images: int = 16) -> MirroredRun:
    """The same of a record that is read already."""
    _check_links(job, [*(image.file for image in result.images), *result.pictures.values()])
    columns, samples = _samples(result)
    return MirroredRun(
        run_id=run_id(result),
        job_id=result.job_id,
        name=run_name(result),
        group=result.sweep_name or job.parent.name,
        job_type=_snake(_class_name(result.config, "task")) or "sample",
        tags=_tags(result, tags or []),
        commit=result.git_commit,
        done=result.done,
        config=_config(result),
        curve=list(_curve(job)),
        images=_images(job, result, max_images),
        columns=columns,
        samples=samples,
        summary=_summary(result),
    )


def _check_links(job: Path, files: Sequence[str]) -> None:
    """What is sent away must be the job's own."""
    folder = job.resolve()
    for file in files:
        if not (job / file).resolve().is_relative_to(folder):
            raise DamagedRecord(f"{job / file}: leads out of the job's folder; accepted are files inside it.")


def run_id(result: JobResult) -> str:
    """The same for the same job of the same sweep, so that logging it again never makes a second run."""
    sweep = hashlib.sha256(str(result.sweep_name).encode()).hexdigest()
    return f"{result.job_id}-{sweep[:6]}"


def _hash(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


# -- its parts


def run_name(result: JobResult) -> str:
    """What was set for this job, shortened: "ddim scale=3 steps=10", or the job's id."""
    parts = []
    for override in result.overrides:
        key, _, value = override.lstrip("+~").partition("=")
        bare = key.rsplit(".", 1)[-1]
        if key.split(".")[0] in {*_LEFT_OUT, "runtime"} or is_secret(bare):
            continue
        value = scrub_text(value)
        short = value if len(value) <= 24 else value[:23] + "…"
        parts.append(short if key in ("scheduler", "sigmas", "sampler", "guidance", "model") else f"{bare}={short}")
    return " ".join(parts)[:NAME_AT_MOST] or result.job_id


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested settings as ``{"guidance": "CFG", "guidance/scale": 3.0, ...}``: a class is the value of its section."""
    if not isinstance(value, Mapping):
        if isinstance(value, (list, tuple)):
            if any(isinstance(item, Mapping) for item in value):
                return flat({str(i): item for i, item in enumerate(value)}, key)
            value = list(value[:LIST_AT_MOST])
        return {key: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        if name == "_target_":
            found[key or "class"] = str(inner).rsplit(".", 1)[-1]
        elif name == "name" and key:
            found[key] = inner
        else:
            # a name with a dot would read as nested
            found |= flat(inner, f"{key}/{name}".lstrip("/").replace(".", "_"))
    return found


def section(config: Config, name: str) -> Config:
    """A section of a config; empty where there is none, or something else in its place."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _config(result: JobResult) -> dict[str, Any]:
    config = result.config
    own = {key: value for key, value in config.items() if key not in _LEFT_OUT}
    own["runtime"] = {k: v for k, v in section(config, "runtime").items() if k not in _LEFT_OUT_RUNTIME}
    found = flat(scrub({**own, "prompts": None}))
    prompts = config.get("prompts")
    prompts = prompts if isinstance(prompts, list) else []
    found["prompts"] = [str(prompt) for prompt in prompts[:PROMPTS_AT_MOST]]
    found["n_prompts"] = len(prompts)
    found["job_id"] = result.job_id
    for key in ("sweep_name", "created", "device", "dtype", "weights_sha256", "git_commit"):
        if (value := getattr(result, key)) is not None:
            found[key] = scrub_text(value)
    versions = {f"versions/{name}": text for name, text in result.versions.items()}
    return {**found, **scrub(versions), **_provenance(result)}


def _provenance(result: JobResult) -> dict[str, Any]:
    """What each metric was computed with: the settings that are one value, without those of single images."""
    found = flat(scrub(result.metrics_info))
    return {
        f"metrics_info/{key}": value
        for key, value in found.items()
        if isinstance(value, (str, int, float, bool)) and "/versions/" not in key
    }


def _tags(result: JobResult, added: list[str]) -> list[str]:
    scheduler = section(result.config, "scheduler").get("name")
    tags = [*added, result.sweep_name, scheduler, _class_name(result.config, "guidance")]
    tags += [f"commit:{result.git_commit[:10]}" if result.git_commit else None, None if result.done else "failed"]
    return list(dict.fromkeys(str(tag)[:TAG_AT_MOST] for tag in tags if tag))


def _summary(result: JobResult) -> dict[str, Any]:
    summary: dict[str, Any] = {"status": result.status}
    if result.error:
        summary["error"] = scrub_text(result.error)
    if result.warnings:
        summary["warnings"] = scrub_text("; ".join(result.warnings))
    summary |= {name: value for name, value in result.metrics.items() if value is not None}
    summary |= {f"seconds/{name}": value for name, value in result.timings.items()}
    summary |= {f"nfe_by_branch/{name}": value for name, value in result.nfe_by_branch.items()}
    for name in ("nfe", "n_images", "images_per_second", "peak_memory_bytes"):
        if (value := getattr(result, name)) is not None:
            summary[name] = value
    spent = [result.timings.get(name) for name in ("encode", "denoise", "decode")]
    known = [seconds for seconds in spent if seconds is not None]
    if result.n_images and len(known) == len(spent):
        summary["seconds/image"] = round(sum(known) / result.n_images, 6)
    return summary


def _curve(job: Path) -> Iterator[dict[str, float]]:
    """One point a stage: t, sigma, log_snr, seconds, and what recorders added with as many values."""
    try:
        trace = read_trace(job)
    except NoRecord:
        return
    count = len(trace.stages)
    recorded = {k: v for k, v in trace.recorded.items() if isinstance(v, list) and len(v) == count}
    for i, stage in enumerate(trace.stages):
        own = {name: value for name, value in msgspec.structs.asdict(stage).items() if value is not None}
        point = {f"curve/{name}": value for name, value in own.items()}
        for name, values in recorded.items():
            # a recorder keeps either a number a stage or several named ones, beside the stage's own keys
            found = values[i] if isinstance(values[i], dict) else {name: values[i]}
            point |= {f"recorded/{k}": v for k, v in found.items() if is_number(v) and k not in own}
        yield point


def _images(job: Path, result: JobResult, at_most: int) -> list[dict[str, Any]]:
    found = [
        {"file": image.file, "sha256": image.sha256, "caption": _caption(image)}
        for image in result.images[:at_most]
        if (job / image.file).is_file()
    ]
    shown = {name: file for name, file in result.pictures.items() if (job / file).is_file()}
    return found + [{"file": file, "sha256": name, "caption": name} for name, file in sorted(shown.items())]


def _caption(image: ImageRecord) -> str:
    return f"{image.prompt or ''} (seed {image.seed})".strip()


def _samples(result: JobResult) -> tuple[list[str], list[list[Any]]]:
    """A row an image: seed, prompt, and what metrics say of each."""
    images = result.images
    scores: dict[str, list[Any]] = {}
    for name, info in result.metrics_info.items():
        values = info.get("per_image")
        named = values if isinstance(values, Mapping) else {name: values}
        scores |= {k: v for k, v in named.items() if isinstance(v, list) and len(v) == len(images)}
    for name in dict.fromkeys(key for image in images for key in image.scores):
        scores[name] = [image.scores.get(name) for image in images]
    rows = [
        [Path(image.file).name, image.seed, image.prompt or "", *(scores[n][i] for n in scores)]
        for i, image in enumerate(images)
    ]
    return ["file", "seed", "prompt", *scores], rows


def _class_name(config: Config, name: str) -> str:
    """The class that a section of the config names, without its module; "" without one."""
    return str(section(config, name).get("_target_") or "").rsplit(".", 1)[-1]


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()

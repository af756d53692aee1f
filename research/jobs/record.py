"""The record of jobs and sweeps on disk: what is in ``result.json``, ``trace.json``, ``partial.json`` and ``sweep.json``, and the
one place where these are written and read.

A folder of results may come from anywhere, so a record is checked once, here: everyone else gets objects whose fields are
what they say. A record that is not is a `DamagedRecord`, which names the file and the field. Keys that this version does not
know are passed over, and lost where a record is written again. Records without a ``format`` are of version 0.1.0 and are read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import msgspec

from research.errors import UserError
from research.files import write_atomic
from research.package import VERSION
from research.picture_files import MOST_PIXELS

FORMAT = 1  # one more when an older version could misread what this one writes
RESULT, TRACE, PARTIAL, SWEEP = "result.json", "trace.json", "partial.json", "sweep.json"
CONFIG = "config.yaml"
# perhaps: a prompt may hold as many digits
_LONG_NUMBER = re.compile(rb"[\s:\[,-]\d{19,}")
_PLAIN_NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)  # of a job: it becomes the name of folders and runs
_MOST_LEVELS = 64
SEAL = "seal"
MEASURED = ("metrics", "metrics_info", "timed")
Altered = frozenset[str]  # parts of a record: "made", "measured"
_MOST_BYTES = 256 << 20  # of a file; ten thousand images with their scores take two megabytes

Config = dict[str, Any]  # a composed config, or a section of one: the keys of plugs are the plugs' own


class StoreError(UserError):
    """The output folder cannot be written any more (disk full, taken away). No further job can be kept."""


class DamagedRecord(UserError):
    """A file of a record is there and is not what a job or a sweep writes. The message names the file and the field."""


class NoRecord(UserError):
    """A folder has no such file: it is no job's, or the job has not ended."""


# --- what a job is asked for


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The section ``model``; see conf/model."""

    path: str
    config: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    allow_pickle: bool = False
    offline: bool | None = None
    revision: str | None = None
    variant: str | None = None
    subfolder: str | None = None
    attention_slicing: int | str | None = None
    compile: bool = False
    channels_last: bool = False
    loras: list[Config] | None = None
    quantize: str = "none"
    offload: str = "none"
    drop_text_encoders: bool = False
    vae_tiling: bool = False
    vae_slicing: bool = False
    distilled_guidance: float | None = None
    max_sequence_length: int | None = None
    size_conditioning: Config | None = None


class SchedulerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The section ``scheduler``: a short name, the class it stands for, and options of that class or of its step."""

    name: str
    class_name: str
    options: Config = msgspec.field(default_factory=dict)


class RuntimeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The section ``runtime``: how a job is run. ``parity`` alone changes its images."""

    threads: int | None = None
    progress: str = "auto"
    parity: bool = False
    claim_timeout: float = 60.0  # seconds
    grace: float = 20.0  # seconds
    workers: int | str = "auto"
    vectorise: str = "auto"
    repeats: int = 0
    latency: int = 0
    max_pixels: int = MOST_PIXELS


class JobSettings(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A composed config as an object. Sections that name a class hold that class's own arguments and stay mappings.

    ``config`` is the whole of it as it was composed, groups that a user added included: what is hashed and written.
    """

    model: ModelSettings
    scheduler: SchedulerSettings
    guidance: Config
    task: Config
    prompts: list[str]
    steps: int
    seed: int
    hooks: dict[str, Config] = msgspec.field(default_factory=dict)
    metrics: dict[str, Config] = msgspec.field(default_factory=dict)
    tracker: Config | None = None
    sigmas: Config = msgspec.field(default_factory=dict)
    sampler: Config = msgspec.field(default_factory=dict)
    runtime: RuntimeSettings = msgspec.field(default_factory=RuntimeSettings)
    images_per_prompt: int = 1
    batch_size: int | str = "auto"
    output_dir: str = "outputs"
    sweep_name: str = "default"
    on_failure: str = "continue"
    resume: bool = True
    retry: str = "none"
    config: Config = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, config: Config) -> JobSettings:
        """The settings of a composed and validated config, which is kept as it is.

        Raises:
            msgspec.ValidationError: a value is not of its type; validation has seen to it that none is.
        """
        given = {key: value for key, value in config.items() if value is not None or key in ("tracker",)}
        return msgspec.convert({**given, "config": config}, cls)

    @property
    def folder(self) -> Path:
        """The folder of its sweep."""
        return Path(self.output_dir, self.sweep_name)


# --- what came of it


class ImageRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One image: its file below the job's folder, and what made it."""

    file: str
    seed: int
    prompt: str | None
    sha256: str | None = None
    scores: dict[str, float | None] = msgspec.field(default_factory=dict)  # measured while it was sampled, by name


class HalvedBatch(msgspec.Struct, kw_only=True):
    """A batch that did not fit into memory: its first image and the one after its last, its size, and what was tried next."""

    rows: list[int]
    batch_size: int
    halved_to: int
    error: str


class CacheUse(msgspec.Struct, kw_only=True):
    """How often a cache of this process helped a job, and its size when the job ended."""

    hits: int
    misses: int
    bytes: int = 0


class Scored(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Where ``research-score`` computed the metrics: when, how, and of which job the images are."""

    created: str
    made_with: str = msgspec.field(name="with")  # hash of the metrics' settings and the libraries
    seconds: float
    device: str | None = None
    versions: dict[str, str | None] = msgspec.field(default_factory=dict)
    copied_from: str | None = msgspec.field(name="from", default=None)


class TimedBatch(msgspec.Struct, kw_only=True):
    """One run of a batch: how many images it has, and its seconds by phase."""

    n_images: int
    encode: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0

    @property
    def seconds(self) -> float:
        """Of all phases, for the whole batch."""
        return self.encode + self.denoise + self.decode


class TimedAgain(msgspec.Struct, kw_only=True):
    """Batches of a job that were run once more for their time alone, after one run each that is not counted.

    Attributes:
        created: when (UTC).
        device: on what.
        batch: runs of the job's first batch.
        one: runs of its first image alone.
    """

    created: str
    device: str | None = None
    batch: list[TimedBatch] = msgspec.field(default_factory=list)
    one: list[TimedBatch] = msgspec.field(default_factory=list)


class MadeSoFar(msgspec.Struct, kw_only=True):
    """What grows while a job runs, batch by batch. A result, a checkpoint and a rank's note of a batch all hold it.

    Attributes:
        images: in order, those that are complete.
        nfe: model evaluations an image, the most of any batch; None before the first.
        nfe_by_branch: the same by the guidance's branches.
        score_evaluations, decoder_calls, gradient_evaluations: what else an image has cost, see `SampleResult`; None of a record
            of before it was counted.
        truncated: prompts longer than the text encoder takes, and what was dropped.
        out_of_memory: batches that did not fit.
        together: ids of the jobs whose images shared batches with this one's, itself among them.
    """

    images: list[ImageRecord] = msgspec.field(default_factory=list)
    nfe: int | None = None
    nfe_by_branch: dict[str, int] = msgspec.field(default_factory=dict)
    score_evaluations: int | None = None
    decoder_calls: int | None = None
    gradient_evaluations: int | None = None
    truncated: list[dict[str, str]] = msgspec.field(default_factory=list)
    warnings: list[str] = msgspec.field(default_factory=list)
    out_of_memory: list[HalvedBatch] = msgspec.field(default_factory=list)
    together: list[str] = msgspec.field(default_factory=list)

    def add(self, other: MadeSoFar) -> None:
        """Take in what further batches gave; lines that are there already are not said twice."""
        self.images += other.images
        for name in ("nfe", "score_evaluations", "decoder_calls", "gradient_evaluations"):
            if (count := getattr(other, name)) is not None:
                setattr(self, name, max(getattr(self, name) or 0, count))
        for branch, number in other.nfe_by_branch.items():
            self.nfe_by_branch[branch] = max(self.nfe_by_branch.get(branch, 0), number)
        for name in ("truncated", "warnings", "out_of_memory", "together"):
            known: list[Any] = getattr(self, name)
            known += [entry for entry in getattr(other, name) if entry not in known]

    def made_so_far(self) -> dict[str, Any]:
        """These fields alone, by name."""
        return {name: getattr(self, name) for name in MadeSoFar.__struct_fields__}


class JobResult(MadeSoFar, kw_only=True, dict=True):
    """``result.json``: what was run, how long it took, what it cost, and how good the images are. docs/reference/files.md
    says what each key holds."""

    job_id: str
    status: Literal["done", "failed"]
    format: int = FORMAT
    identity: str | None = None  # the whole hash that the id begins
    error: str | None = None
    sweep_name: str | None = None
    created: str | None = None  # UTC
    overrides: list[str] = msgspec.field(default_factory=list)
    config: Config = msgspec.field(default_factory=dict)
    metrics: dict[str, float | None] = msgspec.field(default_factory=dict)  # None: no number (NaN)
    metrics_info: dict[str, Config] = msgspec.field(default_factory=dict)
    timings: dict[str, float] = msgspec.field(default_factory=dict)  # seconds by phase, and in total
    images_per_second: float | None = None
    n_images: int = 0
    seeds: list[int] = msgspec.field(default_factory=list)
    pictures: dict[str, str] = msgspec.field(default_factory=dict)  # of all images together: files by name
    weights_sha256: str | None = None
    model_commit: str | None = None  # of a hub model: what its revision stood for
    dtype: str | None = None
    versions: dict[str, str | None] = msgspec.field(default_factory=dict)
    # of each class of the user's own, by its dotted name: the hash of its source; see `research.jobs.plug_sources`
    plug_sources: dict[str, str] = msgspec.field(default_factory=dict)
    # of each picture that task and hooks were given as a file, by its key (task.image, hooks.differential.image[1]): SHA-256
    inputs: dict[str, str] = msgspec.field(default_factory=dict)
    git_commit: str | None = None
    device: str | None = None
    worker: Config | None = None  # None where no launcher started the process
    peak_memory_bytes: int | None = None
    batch_size: int | None = None  # images at a time, of all jobs in the batch
    caches: dict[str, CacheUse] = msgspec.field(default_factory=dict)
    files: dict[str, tuple[int, int]] = msgspec.field(default_factory=dict)  # bytes and time (ns) of each image's file
    scored: Scored | None = None
    timed: TimedAgain | None = None

    @property
    def done(self) -> bool:
        return self.status == "done"

    @cached_property
    def altered(self) -> Altered:
        """Which parts of the file say something else than when it was written, by their seals. Such numbers are shown, and said;
        no job is spared for them. Reading a file sets it, and `replaced` hands it on."""
        return frozenset()

    @cached_property
    def settings(self) -> JobSettings | None:
        """Its config as an object; None of a config that is not whole."""
        try:
            return JobSettings.of(self.config)
        except msgspec.ValidationError:
            return None

    @property
    def error_line(self) -> str:
        """The first line of what went wrong, or an empty string."""
        lines = (self.error or "").strip().splitlines()
        return lines[0] if lines else ""


class StageTrace(msgspec.Struct, kw_only=True):
    """One model evaluation: where it stood, and how long the loop took for it."""

    index: int
    step: int
    t: float | None
    sigma: float | None
    log_snr: float | None
    seconds: float | None = None


class Trace(msgspec.Struct, kw_only=True):
    """``trace.json``: the stages of the first batch, and what recorders kept of each.

    Attributes:
        timings: seconds of the first batch by phase, and its ``n_images``.
        recorded: what recorders kept of the first batch, by names of their own; in the file these stand beside the other keys.
        batches: of each further batch its ``timings`` and what recorders kept.
    """

    stages: list[StageTrace] = msgspec.field(default_factory=list)
    timings: dict[str, int | float] = msgspec.field(default_factory=dict)
    batches: list[Config] = msgspec.field(default_factory=list)
    warnings: list[str] = msgspec.field(default_factory=list)
    recorded: Config = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Trace:
        """The trace of what the loop kept, or of what stands in a file.

        Raises:
            msgspec.ValidationError: a part is not what it should be.
        """
        own = {key: value for key, value in content.items() if key in cls.__struct_fields__ and key != "recorded"}
        recorded = {key: value for key, value in content.items() if key not in own}
        return msgspec.convert({**_plain(own), "recorded": recorded}, cls)

    @property
    def is_empty(self) -> bool:
        return not (self.stages or self.timings or self.recorded)

    def add_batch(self, batch: Trace) -> None:
        """Take in a further batch. The stages are those of the first; they are the same for all."""
        if self.is_empty:
            self.stages, self.timings, self.recorded = batch.stages, batch.timings, batch.recorded
        else:
            self.batches.append({**({"timings": batch.timings} if batch.timings else {}), **batch.recorded})
        self.batches += batch.batches

    def content(self) -> dict[str, Any]:
        """As it stands in the file."""
        own = {"stages": self.stages, "timings": self.timings, "batches": self.batches, "warnings": self.warnings}
        return {**{key: value for key, value in own.items() if value or key in ("stages", "warnings")}, **self.recorded}


class Checkpoint(MadeSoFar, kw_only=True, dict=True):
    """``partial.json``, what is complete of a job that was interrupted between two batches; and a rank's note of one batch.

    It is gone on from by the same job with the same versions, weights and device.
    """

    identity: str
    versions: dict[str, str | None]
    device: str | None
    weights_sha256: str | None
    trace: Config  # as in trace.json
    seconds: dict[str, float]  # by phase
    format: int = FORMAT

    @cached_property
    def altered(self) -> Altered:
        """As of `JobResult`."""
        return frozenset()


class SweepRecord(msgspec.Struct, kw_only=True):
    """``sweep.json``: which version keeps its jobs in the folder, in which form, which were last asked for, and with which
    margins of metrics (``report.margin``), unit of inference (``report.unit``) and budget (``budget``)."""

    format: int
    research: str | None = None
    jobs: list[str] = msgspec.field(default_factory=list)
    margin: dict[str, float | str] = msgspec.field(default_factory=dict)
    unit: str | None = None
    budget: dict[str, float] = msgspec.field(default_factory=dict)


# --- reading

_Record = TypeVar("_Record", JobResult, Checkpoint, SweepRecord)


def read_result(folder: Path) -> JobResult:
    """The ``result.json`` of a job's folder.

    Raises:
        NoRecord: there is none.
        DamagedRecord: it is not one of a job.
    """
    found = _read(folder / RESULT, JobResult)
    if not _PLAIN_NAME.fullmatch(found.job_id):
        raise DamagedRecord(
            f"{folder / RESULT}: job_id is {found.job_id[:80]!r}; accepted are letters, digits, _ and -."
        )
    _check_depth(folder / RESULT, [found.config, found.metrics_info, found.worker])
    _check_paths(folder / RESULT, [*(image.file for image in found.images), *found.pictures.values(), *found.files])
    if found.done and len(found.images) not in (0, found.n_images):
        raise DamagedRecord(f"{folder / RESULT}: n_images is {found.n_images}, and {len(found.images)} are listed.")
    return found


def find_result(folder: Path) -> JobResult | None:
    """The same for whom a damaged record is as good as none."""
    try:
        return read_result(folder)
    except (NoRecord, DamagedRecord):
        return None


def read_trace(folder: Path) -> Trace:
    """The ``trace.json`` of a job's folder.

    Raises:
        NoRecord, DamagedRecord: see `read_result`.
    """
    file = folder / TRACE
    try:
        trace = Trace.of(_decoded(file, dict[str, Any]))
    except msgspec.ValidationError as error:
        raise _damaged(file, error) from error
    tensors = [kept.get("tensors") for kept in (trace.recorded, *trace.batches)]
    _check_paths(file, [kept["file"] for kept in tensors if isinstance(kept, dict) and "file" in kept])
    return trace


def read_batch_times(folder: Path) -> list[TimedBatch]:
    """Seconds of each batch of a job, in the order in which they were made; empty where its trace does not say it of all.

    Of ``trace.json`` nothing else is read: recorders may have left megabytes there.

    Raises:
        NoRecord, DamagedRecord: see `read_result`.
    """
    found = _decoded(folder / TRACE, _Times)
    times = [found.timings, *(batch.timings for batch in found.batches)]
    whole = [one for one in times if one is not None and one.n_images > 0 and math.isfinite(one.seconds)]
    return whole if len(whole) == len(times) else []


class _BatchTimes(msgspec.Struct):
    timings: TimedBatch | None = None


class _Times(msgspec.Struct):
    timings: TimedBatch | None = None
    batches: list[_BatchTimes] = msgspec.field(default_factory=list)


def read_checkpoint(file: Path) -> Checkpoint:
    """A ``partial.json``, or a rank's note.

    Raises:
        NoRecord, DamagedRecord: see `read_result`.
    """
    found = _read(file, Checkpoint)
    _check_paths(file, [image.file for image in found.images])
    return found


def read_sweep_record(sweep_dir: Path) -> SweepRecord:
    """The ``sweep.json`` of a sweep's folder. It is read in whatever format, so that a newer one can be named.

    Raises:
        NoRecord, DamagedRecord: see `read_result`.
    """
    return _decoded(sweep_dir / SWEEP, SweepRecord)


def _read(file: Path, kind: type[_Record]) -> _Record:
    content = _content(file)
    found = _typed(file, content, kind)
    if not isinstance(found, SweepRecord):
        found.__dict__["altered"] = _altered(content)
    if found.format > FORMAT:
        raise DamagedRecord(
            f"{file}: format is {found.format}; accepted are formats up to {FORMAT}, which research {VERSION} reads."
        )
    return found


_T = TypeVar("_T")


def replaced(result: JobResult, **changes: Any) -> JobResult:
    """A result with other fields, and with what is known of its file."""
    found = msgspec.structs.replace(result, **changes)
    found.__dict__["altered"] = result.altered
    return found


def _seals(said: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of what a record says, whatever the order of its keys and the space between them: of what was made, and of what was
    measured of it, which scoring and timing again replace.

    They tell numbers that were altered by hand or by a failing disk; they are no signatures, as everyone can make them.
    """
    measured = {key: said[key] for key in MEASURED if key in said}
    made = {key: value for key, value in said.items() if key not in (*MEASURED, "scored", SEAL)}
    parts = {"made": made, "measured": measured}
    return {
        part: hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()
        for part, content in parts.items()
    }


def _altered(content: bytes) -> Altered:
    """Parts of a file that are not what their seals say; none of a record of before there were seals."""
    said = msgspec.json.decode(content)
    kept = said.get(SEAL)
    if kept is None:
        return frozenset()
    return frozenset(
        part for part, seal in _seals(said).items() if not isinstance(kept, dict) or kept.get(part) != seal
    )


def _decoded(file: Path, kind: type[_T]) -> _T:
    return _typed(file, _content(file), kind)


def _content(file: Path) -> bytes:
    try:
        if file.is_symlink() and not file.resolve().is_relative_to(file.parent.resolve()):
            raise DamagedRecord(f"{file}: is a link out of its folder; accepted are files.")
        if file.is_dir():
            raise DamagedRecord(f"{file}: is a folder; accepted is a file.")
        if not file.is_file():
            raise NoRecord(f"{file}: found no such file; accepted is the folder of a job that has ended.")
        if (size := file.stat().st_size) > _MOST_BYTES:
            raise DamagedRecord(f"{file}: has {size} bytes; accepted are at most {_MOST_BYTES}.")
        return file.read_bytes()
    except OSError as error:
        raise DamagedRecord(f"{file}: cannot be read ({error.strerror or error}).") from error


def _typed(file: Path, content: bytes, kind: type[_T]) -> _T:
    try:
        if _LONG_NUMBER.search(content) and (number := _beyond_64_bits(msgspec.json.decode(content))):
            raise DamagedRecord(
                f"{file}: holds a number of {len(str(abs(number)))} digits; accepted are those of 64 bits."
            )
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise _damaged(file, error) from error


def _beyond_64_bits(content: Any) -> int | None:
    left = [content]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            return value
    return None


def _damaged(file: Path, error: Exception) -> DamagedRecord:
    what = (
        "is nested too deeply" if isinstance(error, RecursionError) else (str(error).splitlines() or ["is not JSON"])[0]
    )
    return DamagedRecord(f"{file}: cannot be used: {what[:300].replace('$', 'the record', 1)}.")


def _check_depth(file: Path, parts: list[Any]) -> None:
    """What has keys of its own is walked through by recursion later on."""
    level = parts
    for _ in range(_MOST_LEVELS):
        level = [
            inner
            for part in level
            if isinstance(part, dict | list)
            for inner in (part.values() if isinstance(part, dict) else part)
        ]
        if not level:
            return
    raise DamagedRecord(f"{file}: is nested too deeply; accepted are {_MOST_LEVELS} levels.")


def _check_paths(file: Path, names: list[Any]) -> None:
    """A record names files below its own folder, and nothing else."""
    for name in names:
        parts = PurePosixPath(name).parts if isinstance(name, str) else ()
        if not parts or "\0" in name or "\\" in name or parts[0] == "/" or ".." in parts:
            raise DamagedRecord(f"{file}: names the file {name!r}; accepted are files below its own folder.")


# --- writing


def write_result(folder: Path, result: JobResult) -> None:
    """Write ``result.json``, whole or not at all, and see it to the disk.

    Raises:
        StoreError: the disk does not take it.
    """
    content = msgspec.structs.asdict(result)
    for name in ("files", "plug_sources", "inputs", "scored", "timed"):  # keys that only some results have
        if not content[name]:
            del content[name]
    ordered = {key: content.pop(key) for key in _FIRST} | content
    write(folder / RESULT, _sealed(encoded(ordered), result.altered), durable=True)


def write_trace(folder: Path, trace: Trace) -> None:
    """Write ``trace.json``."""
    write(folder / TRACE, encoded(trace.content()))


def write_checkpoint(file: Path, checkpoint: Checkpoint) -> None:
    """Write ``partial.json``, or a rank's note."""
    write(file, _sealed(encoded(msgspec.structs.asdict(checkpoint))))


def write_sweep_record(sweep_dir: Path, record: SweepRecord, *, durable: bool = False) -> None:
    """Write ``sweep.json``."""
    write(sweep_dir / SWEEP, encoded(msgspec.structs.asdict(record)), durable=durable)


# what a person looks for comes first in the file
_FIRST = (
    *("format", "job_id", "identity", "status", "error", "sweep_name", "created", "overrides", "config", "metrics"),
    *(
        "metrics_info",
        "timings",
        "images_per_second",
        "nfe",
        "nfe_by_branch",
        "score_evaluations",
        "decoder_calls",
        "gradient_evaluations",
        "n_images",
        "seeds",
        "images",
        "pictures",
    ),
)


def write(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a whole file or none: after a kill the old content or the new is there, never a part.

    Args:
        path: the file.
        content: all of it.
        durable: see it to the disk before going on, so that it outlives a power cut too.

    Raises:
        StoreError: the disk does not take it.
    """
    try:
        write_atomic(path, content, durable=durable)
    except OSError as error:
        raise StoreError(f"output_dir: {path} cannot be written: {error.strerror or error}.") from error


def _sealed(content: bytes, altered: Altered = frozenset()) -> bytes:
    """A record of `encoded` with its `_seals` as the last key; what is altered stays so."""
    seals = _seals(msgspec.json.decode(content))
    seals |= dict.fromkeys(altered, "altered before this was written")
    return content.removesuffix(b"\n}") + f',\n "{SEAL}": {json.dumps(seals)}\n}}'.encode()


def encoded(content: Mapping[str, Any]) -> bytes:
    """A record as JSON."""
    return json.dumps(_plain(content), indent=1, ensure_ascii=False, default=str).encode()


def _plain(value: Any) -> Any:
    """What JSON can hold: records, tensors and arrays as dicts and lists, null for NaN and infinity, which are no JSON, and
    escapes for halves of characters."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

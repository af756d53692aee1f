"""Metrics computed again from the images of jobs that are done, without sampling."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from omegaconf import OmegaConf

from research.errors import ConfigError, UserError
from research.files import read_plain
from research.jobs import environment, process_cache, record
from research.jobs.build import Origin, build, check_names, names_in, names_of_plugins
from research.jobs.claims import TIMEOUT, claim
from research.jobs.compose import Composer, explained
from research.jobs.hydra_internals import apply_overrides
from research.jobs.identity import ID_LENGTH, canonical, job_digest, sources_of
from research.jobs.overrides import as_written, is_choice, parse
from research.jobs.plan_cache import NoCache
from research.jobs.plug_sources import targets_of
from research.jobs.preflight import check_metrics, check_plug_configs
from research.jobs.record import RESULT, TRACE, JobResult, Scored, StoreError
from research.jobs.run_job import task_scores
from research.jobs.scoring import ask
from research.jobs.store import IMAGES, PICTURES, TENSORS, JobFolder
from research.metrics.base import as_metric
from research.picture_files import errors_named, loaded

if TYPE_CHECKING:
    from PIL import Image

_LIBRARIES = ("torch", "torchmetrics", "transformers", "numpy")


@dataclass
class Rescored:
    """What became of a job: "scored", "kept" (it was scored like this before), "busy" or "refused"."""

    folder: Path
    state: str
    error: str = ""


def job_folders(place: Path) -> tuple[Path, list[Path]]:
    """The folder of a sweep and those of its jobs with a record, for a sweep's folder or that of one job.

    Raises:
        ConfigError: it is neither.
    """
    if (place / RESULT).is_file():
        return place.parent, [place]
    found = sorted(file.parent for file in place.glob(f"*/{RESULT}"))
    if not found:
        what = "holds no job with a result.json" if place.is_dir() else "is no folder"
        raise ConfigError(f"{place}: {what}; accepted is the folder of a sweep, outputs/<sweep_name>, or of a job.")
    return place, found


class Definitions:
    """The metrics to compute: those of each job, or with changes.

    Args:
        composer: composes what the command line names.
        lines: overrides of ``metrics`` and keys inside it.
        trusted: the jobs' records may name any class.
        config_dir: a folder of configs of the user's own: the classes that they name may be named by the jobs' records too.

    Raises:
        ConfigError: another key is overridden, or a choice does not exist.
    """

    def __init__(
        self, composer: Composer, lines: Sequence[str], *, trusted: bool = False, config_dir: Path | None = None
    ):
        self.lines = composer.normalise(lines)
        for line in self.lines:
            override = parse(line)
            if override.key_or_group.split(".")[0] != "metrics" or override.is_sweep_override():
                raise ConfigError(
                    f"argument '{as_written(line)}': accepted are metrics=CHOICE and keys inside it, metrics.NAME.KEY=VALUE."
                )
        groups = composer.groups()
        chosen = [line for line in self.lines if is_choice(parse(line), groups)]
        self._values = [parse(line) for line in self.lines if line not in chosen]
        self._chosen: dict[str, Any] | None = None
        if chosen:
            lines = ["prompts=[none]", *chosen]
            self._chosen = composer.job(composer.master([]), composer.normalise(lines))["metrics"] or {}
        given = _strings([self._chosen, [line.value() for line in self._values]])
        self._named = frozenset(given) | names_of_plugins() | (names_in(config_dir) if config_dir else frozenset())
        self._trusted = trusted

    def origin(self, record: Path) -> Origin:
        """What a job's record may name."""
        return Origin(record, trusted=self._trusted, named=self._named)

    def of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The metrics of a job's config."""
        metrics = self._chosen if self._chosen is not None else config.get("metrics") or {}
        with explained():
            # a record is resolved already: what looks like an interpolation is text, not something to look up here
            node = OmegaConf.create({"metrics": _as_text(copy.deepcopy(dict(metrics)))})
            apply_overrides(self._values, node)
            found = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        assert isinstance(found, dict)
        return dict(found["metrics"])


def _as_text(value: Any) -> Any:
    """A value that OmegaConf resolves to what it is now: ``${`` in it is text."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {name: _as_text(inner) for name, inner in value.items()}
    return [_as_text(inner) for inner in value] if isinstance(value, list) else value


def _strings(value: Any) -> Iterator[str]:
    """All texts of what the user gave: a class that is named by hand is among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for inner in value.values() for text in _strings(inner))
    elif isinstance(value, list):
        yield from (text for inner in value for text in _strings(inner))


def rescore(place: Path, definitions: Definitions, *, again: bool = False) -> Rescored:
    """Score the images of one job and keep the numbers.

    With the job's own metrics its ``result.json`` is replaced, whole or not at all. With others, or with a metric of the user's
    own whose source has changed, it is another job, as the metrics are part of who a job is: that gets a folder of its own
    beside it, with the same images, and counts as done.

    Args:
        place: the job's folder.
        definitions: what to compute.
        again: also where the same was computed with the same libraries before.

    Raises:
        StoreError: the folder cannot be written.
    """
    try:
        return _rescored(JobFolder(place), definitions, again)
    except StoreError:
        raise
    except UserError as error:
        return Rescored(place, "refused", str(error))


def _rescored(folder: JobFolder, definitions: Definitions, again: bool) -> Rescored:
    result = record.read_result(folder.path)
    if not result.done:
        raise ConfigError(f"{folder.path}: has the status '{result.status}'; accepted are jobs that are done.")
    metrics = definitions.of(result.config)
    others = {**result.config, "metrics": metrics}
    origin = definitions.origin(folder.path / RESULT)
    check_names(others, origin)
    check_plug_configs(others, NoCache())
    check_metrics(metrics, result.n_images, others, origin)
    sources = _sources(result, metrics)
    same_settings = canonical({"metrics": metrics}) == canonical({"metrics": result.config.get("metrics") or {}})
    same = same_settings and sources == result.plug_sources
    target = folder if same else _beside(folder, others, sources)
    before = result if same else record.find_result(target.path)
    made_with = _made_with(metrics)
    known = before is not None and before.scored is not None and before.scored.made_with == made_with
    if known and not again and target.finished() is not None:
        return Rescored(target.path, "kept")
    held = claim(target.path, result.settings.runtime.claim_timeout if result.settings else TIMEOUT)
    if held is None:
        return Rescored(target.path, "busy", "another process is at work on it")
    try:
        pictures = _pictures(folder, result)
        found = _scored(record.replaced(result, config=others), pictures, target, origin, made_with)
        if not same:
            _copy(folder, target)
            found.job_id, found.identity = target.path.name, job_digest(others, sources=sources)
            found.plug_sources = sources
            found.overrides = _overrides(result, definitions)
            assert found.scored is not None
            found.scored.copied_from = folder.path.name
            target.write_config(others)
        else:
            found.config = result.config
        held.check()
        target.write_result(found)
        if same_settings and not same:
            _ask_for(target.path, instead_of=folder.path)
    finally:
        held.release()
    return Rescored(target.path, "scored")


def _scored(
    result: JobResult, pictures: Sequence[Image.Image], folder: JobFolder, origin: Origin, made_with: str
) -> JobResult:
    """The result with its metrics computed anew, as its config says."""
    process_cache.libraries()
    from research.models.load import resolve_dtype_and_device

    config = result.config
    process_cache.set_threads((config.get("runtime") or {}).get("threads"))
    _, device = resolve_dtype_and_device("auto", _device(config))
    said_by_metrics = [line for info in result.metrics_info.values() for line in info.get("warnings") or []]
    found = record.replaced(result, warnings=[w for w in result.warnings if w not in said_by_metrics])
    found.__dict__["altered"] = result.altered - {"measured"}
    found.metrics, found.metrics_info = task_scores(result.images)
    prompts = [image.prompt or "" for image in result.images]
    start = time.perf_counter()
    for key, node in config["metrics"].items():
        metric = as_metric(build(node, f"metrics.{key}", origin), key)
        said = ask(config, key, metric, pictures, prompts, result.seeds, device, folder, origin)
        found.metrics.update(said.values)
        found.metrics_info[metric.name] = said.info
        found.warnings += [line for line in said.info.get("warnings", []) if line not in found.warnings]
    found.scored = Scored(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        made_with=made_with,
        seconds=round(time.perf_counter() - start, 6),
        device=environment.device_name(device),
        versions=dict(environment.versions()),
    )
    return found


def _device(config: Mapping[str, Any]) -> str:
    """The device of the job; where this machine has none such, what it has."""
    import torch

    asked = str((config.get("model") or {}).get("device") or "auto")
    return asked if asked == "cpu" or torch.cuda.is_available() else "auto"


def _pictures(folder: JobFolder, result: JobResult) -> list[Image.Image]:
    """The job's images, if they are the ones that were written.

    Raises:
        ConfigError: one is gone, or another.
    """
    found = []
    for image_record in result.images:
        file = folder.path / image_record.file
        try:
            content = read_plain(folder.path, image_record.file)
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror or error}); run the job again.") from error
        if hashlib.sha256(content).hexdigest() != image_record.sha256:
            raise ConfigError(f"{file}: is not the image that result.json says (SHA-256); run the job again.")
        with errors_named(str(folder.path), image_record.file):
            found.append(loaded(content))
    if not found:
        raise ConfigError(f"{folder.path}: has no images.")
    return found


def _made_with(metrics: Mapping[str, Any]) -> str:
    """What the numbers depend on besides the images, in a hash."""
    libraries = {name: found for name, found in environment.versions().items() if name in ("research", *_LIBRARIES)}
    told = json.dumps(
        [canonical(dict(metrics)), libraries, *filter(None, [sources_of({"metrics": metrics})])],
        sort_keys=True,
        default=str,
    )
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _sources(result: JobResult, metrics: Mapping[str, Any]) -> dict[str, str]:
    """The sources that the numbers are going to be of: of the images as they were made, of the metrics as they are now.

    Records of before there were sources say nothing of either, and their ids are without.
    """
    now = targets_of({"metrics": metrics})
    if not result.plug_sources and set(now) <= set(targets_of(result.config)):
        return {}
    sampled = targets_of({**result.config, "metrics": {}})
    made = {target: digest for target, digest in result.plug_sources.items() if target in sampled}
    return made | sources_of({"metrics": metrics})


def _beside(folder: JobFolder, config: Mapping[str, Any], sources: Mapping[str, str]) -> JobFolder:
    """The folder of the job that has the same images and other metrics."""
    try:
        digest = job_digest(config, sources=sources)
    except UserError as error:
        raise ConfigError(
            f"{folder.path}: other metrics make it another job, whose id needs its model: {error}"
        ) from error
    return JobFolder(folder.path.parent / digest[:ID_LENGTH])


def _ask_for(place: Path, *, instead_of: Path) -> None:
    """Note that of two jobs of the same settings it is this one whose metrics are those of now."""
    try:
        found = record.read_sweep_record(place.parent)
    except (record.NoRecord, record.DamagedRecord):
        return
    if instead_of.name in found.jobs:
        jobs = sorted({place.name, *found.jobs} - {instead_of.name})
        record.write_sweep_record(place.parent, msgspec.structs.replace(found, jobs=jobs))


def _copy(source: JobFolder, target: JobFolder) -> None:
    """The files of a job in a second folder: linked where the disk can, copied where not."""
    try:
        target.clear()
        for name in (IMAGES, PICTURES, TENSORS):
            for file in (source.path / name).glob("[!.]*"):
                _link(file, target.path / name / file.name)
        if (source.path / TRACE).is_file():
            shutil.copy2(source.path / TRACE, target.path / TRACE)
    except OSError as error:
        raise StoreError(f"output_dir: {target.path} cannot be written: {error.strerror or error}.") from error


def _link(file: Path, copy_of: Path) -> None:
    copy_of.parent.mkdir(parents=True, exist_ok=True)
    copy_of.unlink(missing_ok=True)
    try:
        os.link(file, copy_of)
    except OSError:
        shutil.copy2(file, copy_of)


def _overrides(result: JobResult, definitions: Definitions) -> list[str]:
    own = [line for line in result.overrides if parse(line).key_or_group.split(".")[0] != "metrics"]
    return [*own, *map(as_written, definitions.lines)]

"""A job's folder as what a W&B run of it holds: settings, numbers, curve, images, a row an image. Plain data, made the same way
whenever and wherever the folder is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.errors import UserError
from research.tracking.scrub import is_secret, scrub, scrub_text

FORMAT = 1  # raised when records of old jobs are to be sent again
DIGEST = "mirror/digest"  # of the whole record: what a server holds once all of it has arrived
MEDIA = "mirror/media"  # of images and tables, logged beside them

NAME_AT_MOST, TAG_AT_MOST, PROMPTS_AT_MOST, LIST_AT_MOST = 100, 64, 16, 16

# settings that decide neither images nor numbers
_LEFT_OUT = {"output_dir", "sweep_name", "resume", "retry", "on_failure", "tracker", "hydra", "sweep", "experiment"}
_LEFT_OUT_RUNTIME = {"progress", "claim_timeout", "grace", "workers"}


class RecordError(UserError):
    """A folder is not that of a finished job."""


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
    """The record of a finished job, done or failed.

    Args:
        job: its folder.
        tags: added to its own.
        max_images: the first so many are shown; all are in the table.

    Raises:
        RecordError: no ``result.json``, or not one of a job.
    """
    result = read_result(job)
    config = result.get("config") or {}
    columns, samples = _samples(result)
    return MirroredRun(
        run_id=run_id(result),
        job_id=str(result["job_id"]),
        name=run_name(result),
        group=str(result.get("sweep_name") or job.parent.name),
        job_type=_snake(_target(config.get("task"))) or "sample",
        tags=_tags(result, tags or []),
        commit=result.get("git_commit"),
        done=result.get("status") == "done",
        config=_config(result, config),
        curve=list(_curve(job)),
        images=_images(job, result, max_images),
        columns=columns,
        samples=samples,
        summary=_summary(result),
    )


def read_result(job: Path) -> dict[str, Any]:
    """A job's ``result.json``.

    Raises:
        RecordError: there is none, or it is not one of a job.
    """
    file = job / "result.json"
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{job}: has no result.json; accepted is the folder of a job that has ended.") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{file}: cannot be read ({error}); accepted is what a job has written.") from error
    if not isinstance(result, dict) or not isinstance(result.get("job_id"), str):
        raise RecordError(f"{file}: has no job_id; accepted is what a job has written.")
    return result


def run_id(result: Mapping[str, Any]) -> str:
    """The same for the same job of the same sweep, so that logging it again never makes a second run."""
    sweep = hashlib.sha256(str(result.get("sweep_name")).encode()).hexdigest()
    return f"{result['job_id']}-{sweep[:6]}"


def _hash(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


# -- its parts


def run_name(result: Mapping[str, Any]) -> str:
    """What was set for this job, shortened: "ddim scale=3 steps=10", or the job's id."""
    parts = []
    for override in result.get("overrides") or []:
        key, _, value = str(override).lstrip("+~").partition("=")
        bare = key.rsplit(".", 1)[-1]
        if key.split(".")[0] in {*_LEFT_OUT, "runtime"} or is_secret(bare):
            continue
        value = scrub_text(value)
        short = value if len(value) <= 24 else value[:23] + "…"
        parts.append(short if key in ("scheduler", "guidance", "model") else f"{bare}={short}")
    return " ".join(parts)[:NAME_AT_MOST] or str(result["job_id"])


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


def _config(result: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in config.items() if key not in _LEFT_OUT}
    own["runtime"] = {k: v for k, v in (own.get("runtime") or {}).items() if k not in _LEFT_OUT_RUNTIME}
    found = flat(scrub({**own, "prompts": None}))
    prompts = config.get("prompts") or []
    found["prompts"] = [str(prompt) for prompt in prompts[:PROMPTS_AT_MOST]]
    found["n_prompts"] = len(prompts)
    found["job_id"] = result["job_id"]
    for key in ("sweep_name", "created", "device", "dtype", "weights_sha256", "git_commit"):
        if result.get(key) is not None:
            found[key] = scrub_text(str(result[key]))
    versions = {f"versions/{name}": text for name, text in (result.get("versions") or {}).items()}
    return {**found, **scrub(versions), **_provenance(result)}


def _provenance(result: Mapping[str, Any]) -> dict[str, Any]:
    """What each metric was computed with: the settings that are one value, without those of single images."""
    found = flat(scrub(result.get("metrics_info") or {}))
    return {
        f"metrics_info/{key}": value
        for key, value in found.items()
        if isinstance(value, (str, int, float, bool)) and "/versions/" not in key
    }


def _tags(result: Mapping[str, Any], added: list[str]) -> list[str]:
    config = result.get("config") or {}
    scheduler = (config.get("scheduler") or {}).get("name")
    commit = result.get("git_commit")
    tags = [*added, result.get("sweep_name"), scheduler, _target(config.get("guidance"))]
    tags += [f"commit:{str(commit)[:10]}" if commit else None, None if result.get("status") == "done" else "failed"]
    return list(dict.fromkeys(str(tag)[:TAG_AT_MOST] for tag in tags if tag))


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    summary: dict[str, Any] = {"status": result.get("status")}
    if result.get("error"):
        summary["error"] = scrub_text(str(result["error"]))
    if warnings := result.get("warnings"):
        summary["warnings"] = scrub_text("; ".join(str(warning) for warning in warnings))
    summary |= {name: value for name, value in (result.get("metrics") or {}).items() if value is not None}
    for group, key in (("seconds", "timings"), ("nfe_by_branch", "nfe_by_branch")):
        summary |= {f"{group}/{name}": value for name, value in (result.get(key) or {}).items()}
    for name in ("nfe", "n_images", "images_per_second", "peak_memory_bytes"):
        if result.get(name) is not None:
            summary[name] = result[name]
    spent = [(result.get("timings") or {}).get(name) for name in ("encode", "denoise", "decode")]
    known = [seconds for seconds in spent if isinstance(seconds, (int, float))]
    if result.get("n_images") and len(known) == len(spent):
        summary["seconds/image"] = round(sum(known) / result["n_images"], 6)
    return summary


def _curve(job: Path) -> Iterator[dict[str, float]]:
    """One point a stage: t, sigma, log_snr, seconds, and what recorders added with as many values."""
    try:
        trace = json.loads((job / "trace.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    stages = trace.get("stages") or []
    recorded = {name: values for name, values in trace.items() if name != "stages" and _fits(values, stages)}
    for i, stage in enumerate(stages):
        point = {f"curve/{name}": value for name, value in stage.items() if is_number(value)}
        for name, values in recorded.items():
            # a recorder keeps either a number a stage or several named ones, beside the stage's own keys
            found = values[i] if isinstance(values[i], dict) else {name: values[i]}
            point |= {f"recorded/{k}": v for k, v in found.items() if is_number(v) and k not in stage}
        yield point


def _fits(values: Any, stages: list[Any]) -> bool:
    return isinstance(values, list) and len(values) == len(stages)


def _images(job: Path, result: Mapping[str, Any], at_most: int) -> list[dict[str, Any]]:
    entries = (result.get("images") or [])[:at_most]
    found = [
        {"file": entry["file"], "sha256": entry.get("sha256"), "caption": _caption(entry)}
        for entry in entries
        if (job / entry["file"]).is_file()
    ]
    shown = {name: file for name, file in (result.get("pictures") or {}).items() if (job / file).is_file()}
    return found + [{"file": file, "sha256": name, "caption": str(name)} for name, file in sorted(shown.items())]


def _caption(entry: Mapping[str, Any]) -> str:
    return f"{entry.get('prompt') or ''} (seed {entry.get('seed')})".strip()


def _samples(result: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """A row an image: seed, prompt, and what metrics say of each."""
    entries = result.get("images") or []
    scores: dict[str, list[Any]] = {}
    for name, info in (result.get("metrics_info") or {}).items():
        values = info.get("per_image") if isinstance(info, Mapping) else None
        named = values if isinstance(values, Mapping) else {name: values}
        scores |= {k: v for k, v in named.items() if isinstance(v, list) and len(v) == len(entries)}
    for name in dict.fromkeys(key for entry in entries for key in entry.get("scores") or {}):
        scores[name] = [(entry.get("scores") or {}).get(name) for entry in entries]
    rows = [
        [Path(entry["file"]).name, entry.get("seed"), entry.get("prompt") or "", *(scores[n][i] for n in scores)]
        for i, entry in enumerate(entries)
    ]
    return ["file", "seed", "prompt", *scores], rows


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _target(section: Any) -> str:
    """The class that a section of the config names, without its module; "" without one."""
    return str((section or {}).get("_target_") or "").rsplit(".", 1)[-1]


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()

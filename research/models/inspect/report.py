"""What `inspect_model` finds out, as data, and as lines of text."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from research.models.inspect.safe_files import shown

Verdict = Literal["safe", "pickle", "no"]


@dataclass
class Inspection:
    """What is known of a model without loading it.

    Attributes:
        path: as it was given; ``location`` is the file or directory, or the hub id.
        kind: "pipeline", "sd-checkpoint", "lora", "gguf", "component", "missing", ...; ``what`` says it in words.
        verdict: "safe" (loads, and nothing is pickled), "pickle" (loads only if pickles are allowed) or "no".
        reason: why the verdict is not "safe"; one line.
        problems: all that was found wrong; warnings: what works and is doubtful; notes: what else is good to know.
        components: name, library, class_name, used, variant, parameters, bytes, dtypes (parameters of each), files, pickled.
        scheduler: class_name, prediction_type and the telling settings; None if there is none.
        pickles: file, whether it would be read, what it names, and what of that is more than tensors.
        memory: parameters, bytes by dtype, bytes free, and whether the model fits; None if unknown.
        tasks, schedulers: short names of those that go with it.
    """

    path: str
    location: str = ""
    kind: str = "unknown"
    what: str = ""
    verdict: Verdict = "no"
    reason: str | None = None
    pipeline: str | None = None
    family: str | None = None
    role: str | None = None
    components: list[dict[str, Any]] = field(default_factory=list)
    scheduler: dict[str, Any] | None = None
    pickles: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, Any] | None = None
    tasks: list[str] = field(default_factory=list)
    schedulers: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def loads_safely(self) -> bool:
        return self.verdict == "safe"

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if self.verdict == "safe":
            return "loads safely"
        if self.verdict == "pickle":
            return f"loads only with --allow-pickle: {self.reason}"
        return f"cannot be loaded: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**dataclasses.asdict(self), "loads_safely": self.loads_safely, "sentence": self.sentence}


def lines(found: Inspection) -> list[str]:
    """The plain text of ``research-inspect``."""
    rows = [("is", found.what)]
    if found.location and found.location != found.path:
        rows.append(("at", found.location))
    rows += [(part["name"], _component(part)) for part in found.components if part["name"] != "scheduler"]
    if found.scheduler:
        rows.append(("scheduler", _scheduler(found.scheduler)))
    if found.components or found.pickles:
        rows.append(("pickled", _pickles(found.pickles)))
    if found.memory:
        rows.append(("memory", _memory(found.memory)))
    rows += [("tasks", ", ".join(found.tasks))] * bool(found.tasks)
    rows += [("schedulers", ", ".join(found.schedulers))] * bool(found.schedulers)
    rows += [("note", note) for note in found.notes]
    rows += [("warning", warning) for warning in found.warnings]
    rows += [("problem", problem) for problem in found.problems]
    rows.append(("verdict", found.sentence))
    width = max(len(label) for label, _ in rows)
    # what a file says of itself may be as long as it likes; a line of ours may not
    return [shown(found.path, 1000), *(f"  {label:<{width}}  {shown(text, 1500)}" for label, text in rows)]


def size(nbytes: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.0f} {unit}" if nbytes >= 100 or unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return ""


def count(number: int) -> str:
    """A number of parameters for people."""
    for unit, value in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= value:
            return f"{number / value:.3g} {unit}"
    return str(number)


def _component(part: dict[str, Any]) -> str:
    if part["class_name"] is None:
        return "absent" if part["used"] else "absent (optional)"
    words = [f"{part['library']}.{part['class_name']}"]
    if part["parameters"]:
        words.append(f"{count(part['parameters'])} parameters")
    if part["bytes"]:
        words.append(size(part["bytes"]))
    words += [", ".join(part["dtypes"])] * bool(part["dtypes"])
    words += [f"variant {part['variant']}"] * bool(part["variant"])
    words += ["pickled"] * part["pickled"]
    words += [] if part["used"] else ["not used here"]
    return ", ".join(words)


def _scheduler(scheduler: dict[str, Any]) -> str:
    words = [str(scheduler["class_name"]), f"predicts {scheduler['prediction_type']}"]
    words += [f"{scheduler['num_train_timesteps']} timesteps"] * bool(scheduler.get("num_train_timesteps"))
    if scheduler.get("beta_schedule"):
        words.append(f"betas {scheduler['beta_schedule']} {scheduler['beta_start']} to {scheduler['beta_end']}")
    if scheduler.get("timestep_spacing"):
        words.append(f"spacing {scheduler['timestep_spacing']}")
    if scheduler.get("terminal_snr") is not None:
        zero = "zero" if scheduler["zero_terminal_snr"] else "not zero"
        words.append(f"terminal SNR {scheduler['terminal_snr']:.3g} ({zero})")
    return ", ".join(words)


def _pickles(pickles: list[dict[str, Any]]) -> str:
    if not pickles:
        return "nothing"
    said = []
    for each in pickles[:6]:
        words = "read with --allow-pickle" if each["read"] else "not read"
        if each["foreign"]:
            words += f", names {', '.join(name.replace(' ', '.') for name in each['foreign'][:3])}"
        said.append(f"{each['file']} ({words})")
    return ", ".join(said) + (f" and {len(pickles) - 6} more" if len(pickles) > 6 else "")


def _memory(memory: dict[str, Any]) -> str:
    at = memory["bytes"]
    text = f"weights {size(at['float32'])} in float32, {size(at['float16'])} in float16 or bfloat16"
    free = [
        f"{size(memory[key])} of {what}"
        for key, what in (("ram_free", "RAM"), ("gpu_free", "GPU memory"))
        if memory[key] is not None
    ]
    return text + (f"; free are {' and '.join(free)}" if free else "")

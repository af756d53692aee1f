"""What is known of a model without loading it: the record that ``research-inspect`` prints, as text or JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from research.models.inspect.safe_files import shown

Verdict = Literal["safe", "pickle", "no"]


class ComponentEntry(TypedDict):
    """One part of a pipeline; ``dtypes`` holds the parameters of each."""

    name: str
    library: str | None
    class_name: str | None
    used: bool
    variant: str
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    files: list[str]
    pickled: bool
    problems: list[str]


class PickleEntry(TypedDict):
    """A pickled file: whether it would be read, what it names, and what of that is more than tensors."""

    file: str
    read: bool
    names: list[str]
    foreign: list[str]
    problem: str | None


class MemoryEntry(TypedDict):
    """What the weights need by dtype, in bytes, and what is free here."""

    parameters: int
    bytes: dict[str, int]
    ram_free: int | None
    gpu_free: int | None
    fits: bool


@dataclass
class Inspection:
    """What is known of a model without loading it.

    Attributes:
        path: as it was given; ``location`` is the file or directory, or the hub id.
        kind: "pipeline", "sd-checkpoint", "lora", "gguf", "component", "missing", ...; ``what`` says it in words.
        verdict: "safe" (loads, and nothing is pickled), "pickle" (loads only if pickles are allowed) or "no".
        reason: why the verdict is not "safe"; one line.
        problems: all that was found wrong; warnings: what works and is doubtful; notes: what else is good to know.
        scheduler: class_name, prediction_type and the telling settings; None if there is none.
        memory: None if unknown.
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
    components: list[ComponentEntry] = field(default_factory=list)
    scheduler: dict[str, Any] | None = None
    pickles: list[PickleEntry] = field(default_factory=list)
    memory: MemoryEntry | None = None
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

    def refuse(self, problem: str) -> None:
        """Note a problem that keeps the model from being loaded; the first one is the reason given."""
        text = shown(problem.removeprefix("model.path: "), 1000)
        self.verdict = "no"
        self.problems.append(text)
        self.reason = self.reason or text


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

"""An `Inspection` as lines of text."""

from __future__ import annotations

from typing import Any

from research.models.inspect.inspection import ComponentEntry, Inspection, MemoryEntry, PickleEntry, count, size
from research.models.inspect.safe_files import shown


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


def _component(part: ComponentEntry) -> str:
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


def _pickles(pickles: list[PickleEntry]) -> str:
    if not pickles:
        return "nothing"
    listed = []
    for each in pickles[:6]:
        words = "read with --allow-pickle" if each["read"] else "not read"
        if each["foreign"]:
            words += f", names {', '.join(name.replace(' ', '.') for name in each['foreign'][:3])}"
        listed.append(f"{each['file']} ({words})")
    return ", ".join(listed) + (f" and {len(pickles) - 6} more" if len(pickles) > 6 else "")


def _memory(memory: MemoryEntry) -> str:
    at = memory["bytes"]
    text = f"weights {size(at['float32'])} in float32, {size(at['float16'])} in float16 or bfloat16"
    free = [
        f"{size(nbytes)} of {what}"
        for nbytes, what in ((memory["ram_free"], "RAM"), (memory["gpu_free"], "GPU memory"))
        if nbytes is not None
    ]
    return text + (f"; free are {' and '.join(free)}" if free else "")

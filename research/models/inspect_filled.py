"""The parts of an `Inspection` that directories and single files have in common."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from research.errors import ModelError
from research.models.inspect.parts import Component
from research.models.inspect.pickles import report_pickle
from research.models.inspect.report import Inspection
from research.models.inspect.safe_files import read_json, shown
from research.models.inspect_values import first_not_finite, free_memory
from research.solvers.names import resolve, scheduler_names

_TASKS = {
    "text": ["text_to_image", "image_to_image", "inpaint", "interpolation", "inversion"],
    "inpaint": ["inpaint"],
    "depth": ["depth_to_image"],
    "pixel": ["unconditional", "interpolation"],
}
_READ_UNASKED = 256 << 20  # bytes of weights that are looked through for NaN without being asked to
_TELLING = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "timestep_spacing",
    "rescale_betas_zero_snr",
)


def refuse(found: Inspection, problem: str) -> None:
    """Note a problem that keeps the model from being loaded; the first one is the reason given."""
    text = shown(problem.removeprefix("model.path: "), 1000)
    found.verdict = "no"
    found.problems.append(text)
    found.reason = found.reason or text


def role_of(configs: dict[str, dict[str, Any]]) -> str | None:
    """What a UNet's input channels are: "text", "inpaint", "depth" or "pixel"."""
    if "vae" not in configs:
        return "pixel"
    latent, entry = configs["vae"].get("latent_channels"), configs.get("unet", {}).get("in_channels")
    if not isinstance(latent, int):
        return None
    return {latent: "text", 2 * latent + 1: "inpaint", latent + 1: "depth"}.get(entry or -1)


def fill_fitting(found: Inspection) -> None:
    """The tasks and schedulers that go with what was found."""
    if found.verdict == "no":
        return
    found.tasks = _TASKS.get(found.role or "", [])
    is_flow = "FlowMatch" in str((found.scheduler or {}).get("class_name"))
    found.schedulers = [n for n in scheduler_names() if ("FlowMatch" in resolve(n).class_name) == is_flow]


def describe_scheduler(file: Path) -> dict[str, Any] | None:
    """The class and the telling settings, as they are in force (defaults included) where the class is known."""
    try:
        config = read_json(file)
    except ModelError:
        return None
    said: dict[str, Any] = dict(config)
    snr = None
    from research.models.inspect_fit import make_scheduler

    with contextlib.suppress(ModelError):
        scheduler = make_scheduler(config, file)
        said = {**dict(scheduler.config), **config}
        if (left := getattr(scheduler, "alphas_cumprod", None)) is not None:
            snr = float(left[-1] / (1 - left[-1]))
    flow = "flow" if "FlowMatch" in str(config.get("_class_name")) else "epsilon"
    return {
        "class_name": shown(config.get("_class_name")),
        "prediction_type": shown(said.get("prediction_type") or flow),
        **{key: said[key] for key in _TELLING if key in said},
        "terminal_snr": snr,
        "zero_terminal_snr": None if snr is None else snr < 1e-6,
    }


def list_pickles(found: Inspection, files: list[Path], read: list[Path] | None = None) -> None:
    """Note pickled files and what they name; ``read`` are those that would be read."""
    root = Path(found.location)
    for file in files:
        report = report_pickle(file)
        found.pickles.append(
            {
                "file": shown(file.relative_to(root) if file != root and root in file.parents else file.name),
                "read": file in (read or []),
                "names": list(report.names),
                "foreign": list(report.foreign),
                "problem": report.problem,
            }
        )


def estimate_memory(found: Inspection, parts: list[Component]) -> None:
    """The bytes that the weights of parts take, and the bytes that are free."""
    parameters = sum(part.parameters for part in parts)
    if not parameters:
        return
    ram, gpu = free_memory()
    needed = {"float32": 4 * parameters, "float16": 2 * parameters, "bfloat16": 2 * parameters}
    fits = ram is None or needed["float32"] <= ram
    found.memory = {"parameters": parameters, "bytes": needed, "ram_free": ram, "gpu_free": gpu, "fits": fits}
    if not fits:
        found.warnings.append("the weights in float32 are more than the memory that is free here")


def look_through(found: Inspection, files: list[Path], deep: bool) -> None:
    """Refuse weights with values that are not finite; large files are looked at only if asked for."""
    if found.verdict == "no" or not (deep or sum(f.stat().st_size for f in files) <= _READ_UNASKED):
        return
    for file in files:
        if name := first_not_finite(file):
            refuse(
                found,
                f"{file}: {shown(name)} has values that are not finite (NaN or infinite), so no picture can come of it.",
            )
            return

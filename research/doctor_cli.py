"""The command ``research doctor``: what this machine has for sampling, what does not fit, and what would be slow and why."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from research.errors import UserError
from research.package import VERSION, config_dir

OK, PROBLEM, BAD_INPUT = 0, 1, 2
_PACKAGE = "diffusion-sampling-research"
_GIB = 1 << 30
_LITTLE_DISK = 2 * _GIB
_EPILOG = """\
Nothing is loaded but torch, nothing is written, and no network is asked unless --hub says so. Exit code 1: something that the
project needs is missing or of another version."""


@dataclass
class Findings:
    """Facts by section, and what to say of them.

    Attributes:
        facts: by section, in words.
        slow: what would be slow, and why.
        problems: what does not work.
    """

    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    slow: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, section: str, **facts: str) -> None:
        self.facts.setdefault(section, {}).update(facts)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 where something that is needed is missing, 2 for arguments that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="research doctor",
        description="What this machine has for sampling, and what would be slow.",
        epilog=_EPILOG,
    )
    parser.add_argument("--hub", action="store_true", help="ask whether the model hub can be reached")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("outputs"), metavar="DIR", help="where sweeps would be kept"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(argv)
    try:
        found = examine(args.output_dir, ask_hub=args.hub)
    except UserError as error:
        print(f"research doctor: {error}", file=sys.stderr)
        return BAD_INPUT
    print(json.dumps(asdict(found), indent=2) if args.json else _text(found))
    return PROBLEM if found.problems else OK


def examine(output_dir: Path, *, ask_hub: bool = False) -> Findings:
    """Look at everything; see the command."""
    found = Findings()
    for look in (_versions, _extras, _device, _memory):
        look(found)
    _disk(found, output_dir)
    _caches(found)
    _hub(found, ask_hub)
    _environment(found)
    return found


def _text(found: Findings) -> str:
    lines = []
    for section, facts in found.facts.items():
        lines.append(section)
        width = max(map(len, facts), default=0)
        lines += [f"  {name:<{width}}  {value}" for name, value in facts.items()]
    for title, told in (("would be slow", found.slow), ("does not work", found.problems)):
        if told:
            lines += [title, *(f"  - {line}" for line in told)]
    if not found.slow and not found.problems:
        lines.append("nothing found that would be slow, or that does not work")
    return "\n".join(lines)


# -- what there is


def _versions(found: Findings) -> None:
    found.add("versions", research=VERSION, python=platform.python_version(), conf=str(config_dir()))
    needed, _ = _requirements()
    for name, wanted in needed.items():
        there = _version(name)
        found.add("versions", **{name: there or "missing"})
        if there is None:
            found.problems.append(f"{name}{wanted} is not installed: pip install '{name}{wanted}'")
        elif not _fits(there, wanted):
            found.problems.append(f"{name} is {there}, accepted is {wanted}: pip install '{name}{wanted}'")


def _extras(found: Findings) -> None:
    _, extras = _requirements()
    for extra, names in sorted(extras.items()):
        if extra in ("dev", "docs"):
            continue
        missing = [name for name in names if _version(name) is None]
        found.add("extras", **{extra: "installed" if not missing else f"not installed: pip install '.[{extra}]'"})


def _requirements() -> tuple[dict[str, str], dict[str, list[str]]]:
    """What the package needs by name, with versions; and names by extra."""
    try:
        lines = requires(_PACKAGE) or []
    except PackageNotFoundError:
        return {}, {}
    needed: dict[str, str] = {}
    extras: dict[str, list[str]] = {}
    for line in lines:
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?(?:;(.*))?", line)
        if match is None:
            continue
        name, wanted, marker = match[1], match[2].strip(), match[3] or ""
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        if extra:
            extras.setdefault(extra[1], []).append(name)
        else:
            needed[name] = wanted
    return needed, extras


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _fits(there: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(wanted).contains(there, prereleases=True)


def _device(found: Findings) -> None:
    if _version("torch") is None:
        return
    start = time.perf_counter()
    import torch

    seconds = time.perf_counter() - start
    cuda = torch.cuda.is_available()
    if cuda:
        gpus = [torch.cuda.get_device_properties(place) for place in range(torch.cuda.device_count())]
        names = ", ".join(f"{gpu.name} ({gpu.total_memory / _GIB:.0f} GiB)" for gpu in gpus)
        found.add("device", gpu=names)
    else:
        found.add("device", gpu=f"none that this torch uses ({torch.__version__})")
    mps = getattr(torch.backends, "mps", None)
    if not cuda and mps is not None and mps.is_available():
        found.add("device", mps="available: model.device=mps")
    from research.models.load import resolve_dtype_and_device

    dtype, device = resolve_dtype_and_device("auto", "auto")
    cores, threads = _cores(), torch.get_num_threads()
    found.add(
        "device", auto=f"{str(dtype).removeprefix('torch.')} on {device}", cores=f"{cores:g}", threads=str(threads)
    )
    found.add("device", **{"import torch": f"{seconds:.1f} s"})
    if device.type == "cpu":
        found.slow.append(
            "models run on the CPU in float32: the embedded emoji models take milliseconds a step, Stable Diffusion 1.5 "
            "minutes an image"
        )
        if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").is_dir():
            found.problems.append(
                "there is an NVIDIA driver, and this torch uses none of it: install a build of torch for CUDA"
            )
    if threads > cores:
        found.slow.append(
            f"torch takes {threads} threads, and this process has {cores:g} cores: they wait for each other; runtime.threads="
            f"{max(1, int(cores))} or OMP_NUM_THREADS={max(1, int(cores))}"
        )
    if seconds > 10:
        found.slow.append(f"importing torch took {seconds:.0f} s: a cold or slow disk; each command pays it once")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 1.5 * cores:
        found.slow.append(
            f"the machine is busy: load {load:.1f} on {cores:g} cores; seconds that are measured now say little"
        )


def _cores() -> float:
    """Cores that this process may use: those that it is bound to, or what its control group is given of them."""
    count: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            count = min(count, int(quota) / int(period))
    except (OSError, ValueError):
        pass
    return count


def _memory(found: Findings) -> None:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return
    found.add("device", memory=f"{whole / _GIB:.1f} GiB, {free / _GIB:.1f} free")


def _disk(found: Findings, output_dir: Path) -> None:
    there = next(folder for folder in (output_dir.absolute(), *output_dir.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        found.problems.append(f"output_dir: {output_dir} cannot be written")
        return
    free = shutil.disk_usage(there).free
    found.add("disk", output_dir=f"{output_dir}, {free / _GIB:.1f} GiB free")
    if free < _LITTLE_DISK:
        found.problems.append(f"output_dir: {free / _GIB:.1f} GiB are left there; a full disk ends a sweep")


def _caches(found: Findings) -> None:
    from research.zoo import ZOO_DIR, zoo_path

    names = sorted(place.name for place in ZOO_DIR.iterdir() if zoo_path(place.name))
    found.add("models", embedded=", ".join(names))
    folder = _hub_cache()
    if folder is None:
        return
    models = sorted(folder.glob("models--*")) if folder.is_dir() else []
    shown = ", ".join(place.name.removeprefix("models--").replace("--", "/", 1) for place in models[:8])
    more = f" and {len(models) - 8} more" if len(models) > 8 else ""
    found.add("models", **{"hub cache": f"{folder}: {shown + more if models else 'empty'}"})


def _hub_cache() -> Path | None:
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return None
    return Path(HF_HUB_CACHE)


def _hub(found: Findings, ask: bool) -> None:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        found.add("models", hub="not asked: HF_HUB_OFFLINE is set, models come from the cache")
        return
    if not ask:
        found.add("models", hub="not asked (--hub asks)")
        return
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        answer: Any = get_session().get(f"{constants.ENDPOINT}/api/models?limit=1", timeout=10)
        found.add("models", hub=f"{constants.ENDPOINT} answers {answer.status_code}")
        if answer.status_code >= 400:
            found.problems.append(f"the hub {constants.ENDPOINT} answers {answer.status_code}")
    except Exception as error:  # of whichever library the hub's client is built on
        found.add("models", hub=f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})")
        found.problems.append(
            f"the hub {constants.ENDPOINT} cannot be reached: hub ids work from the cache alone (model.offline=true); "
            "embedded models and directories need none"
        )


def _environment(found: Findings) -> None:
    names = (
        "OMP_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
        "HF_HUB_OFFLINE",
        "HF_HOME",
        "WANDB_MODE",
        "RESEARCH_FULL_ERROR",
    )
    found.add("environment", **{name: os.environ[name] for name in names if name in os.environ})
    if not found.facts["environment"]:
        del found.facts["environment"]
    if os.environ.get("CUDA_LAUNCH_BLOCKING") == "1":
        found.slow.append("CUDA_LAUNCH_BLOCKING=1: the CPU waits for each kernel of the GPU")


if __name__ == "__main__":
    sys.exit(main())

"""torch.compile of a network: whether this machine can, what it cost, and when a compiled network runs as it is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from research.errors import ConfigError, SamplingError

_KEY = "model.compile"


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Have torch compile a network when it is first called, for each shape that it meets; once more changes nothing.

    Raises:
        ConfigError: what torch needs to compile for the device is not there.
    """
    if is_compiled(network):
        return
    check_compiler(device)
    network.compile()


def is_compiled(network: nn.Module) -> bool:
    """Whether `compile_network` was asked for a network."""
    return getattr(network, "_compiled_call_impl", None) is not None


def check_compiler(device: torch.device) -> None:
    """Raise a ConfigError unless what torch compiles with is there: a C++ compiler for a CPU, Triton for a GPU."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ConfigError(f"{_KEY}: found true, and torch has no Triton for {device}; accepted there is false.")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        found = get_cpp_compiler()
    except Exception as error:  # of a class that moves between versions of torch
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(_no_compiler(reason)) from error
    if shutil.which(found) is None:
        raise ConfigError(_no_compiler(f"{found} is not there"))


def _no_compiler(reason: str) -> str:
    return (
        f"{_KEY}: found true, and there is no C++ compiler ({reason}); accepted is one in the variable CXX, or false."
    )


def seconds_compiling() -> float:
    """The seconds that this process has spent compiling."""
    from torch._dynamo.utils import compilation_time_metrics

    return float(sum(compilation_time_metrics.get("_compile.compile_inner", ())))


def runs_as_written(network: nn.Module) -> bool:
    """Whether layers of a network do something else than their classes say: patched for a branch, or kept between stages by a
    hook. What was compiled knows nothing of that."""
    return any("forward" in vars(module) for module in network.modules())


@contextmanager
def counted(network: nn.Module, timings: dict[str, float]) -> Iterator[None]:
    """While it lasts, a network that is to be compiled is called: what compiling costs is counted as ``timings["compile"]`` and
    not as denoising.

    Raises:
        SamplingError: it cannot be compiled; the message says why.
    """
    before = seconds_compiling()
    eager: Any = torch.compiler.set_stance("force_eager") if runs_as_written(network) else nullcontext()
    try:
        with eager:
            yield
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise SamplingError(f"{_KEY}: torch cannot compile this network: {reason}; accepted is false.") from error
        raise
    spent = seconds_compiling() - before
    if spent > 0:
        timings["compile"] = timings.get("compile", 0.0) + spent
        timings["denoise"] = timings.get("denoise", 0.0) - spent

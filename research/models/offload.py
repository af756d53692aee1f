"""Weights that wait in the CPU's memory until they are asked for, by accelerate's hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch import nn

CPU = torch.device("cpu")


def offload(model: Any, how: str, device: torch.device) -> None:
    """Keep a model's weights in the CPU's memory: "model", all parts but the one at work; "sequential", all layers but one.

    As diffusers' ``enable_model_cpu_offload`` and ``enable_sequential_cpu_offload``, but that parts may be called in any order.
    """
    modules = model.modules()
    for module in modules:
        module.to(CPU)
        if how == "sequential":
            cpu_offload(module, execution_device=device, offload_buffers=len(module._parameters) > 0)
        else:
            add_hook_to_module(module, _AtWork(device, others=[other for other in modules if other is not module]))
        module._runs_on = device
    model.runs_on = device


def offload_text_encoders(model: Any, device: torch.device) -> None:
    """Keep the text encoders in the CPU's memory but while they encode; the other parts go to the device."""
    encoders = [part for name, part in model.named_parts().items() if name.startswith("text_encoder")]
    for module in model.modules():
        if any(module is encoder for encoder in encoders):
            add_hook_to_module(module.to(CPU), _AtWork(device, leaves=True))
            module._runs_on = device
        else:
            module.to(device)
    model.runs_on = device


class _AtWork(ModelHook):
    """Brings a part to a device when it is called; the others go back to the CPU first, or it does itself when it is done."""

    def __init__(self, device: torch.device, *, others: Sequence[nn.Module] = (), leaves: bool = False):
        self.device, self.others, self.leaves = device, others, leaves

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for other in self.others:
            if _place(other) != CPU:
                other.to(CPU)
        if _place(module) != self.device:
            module.to(self.device)
        return send_to_device(args, self.device), send_to_device(kwargs, self.device)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        if self.leaves:
            module.to(CPU)
        return output


def _place(module: nn.Module) -> torch.device:
    return next(module.parameters()).device

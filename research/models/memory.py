"""Large models on small GPUs: parts that wait in the CPU's memory, weights in fewer bits, pictures decoded by pieces. The checks
need no torch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from research.checks import check_choice
from research.errors import ConfigError

if TYPE_CHECKING:
    import torch

OFFLOAD = ("none", "model", "sequential")
QUANTIZE = ("none", "fp8", "int8", "nf4")
_BACKENDS = {"int8": "torchao", "nf4": "bitsandbytes"}


@dataclass(frozen=True)
class Memory:
    """How a model's memory is used; the arguments of `load_model` of the same names."""

    quantize: str = "none"
    offload: str = "none"
    drop_text_encoders: bool = False
    vae_tiling: bool = False
    vae_slicing: bool = False

    def check(self, device: str | None, *, compile: bool, loras: bool) -> None:
        """Check before weights load.

        Args:
            device: its type, "cpu" or "cuda"; None where that is not known yet.
            compile, loras: whether there are any.

        Raises:
            ConfigError: a value that is none of the accepted, a backend that is not installed, no device to offload from, or
                settings that do not go together.
        """
        check_choice("model.quantize", self.quantize, QUANTIZE)
        check_choice("model.offload", self.offload, OFFLOAD)
        for key in ("drop_text_encoders", "vae_tiling", "vae_slicing"):
            check_choice(f"model.{key}", getattr(self, key), (True, False))
        backend = _BACKENDS.get(self.quantize)
        if backend and importlib.util.find_spec(backend) is None:
            raise ConfigError(
                f"model.quantize: found {self.quantize}, for which {backend} is not installed; accepted: none, fp8."
            )
        if backend and loras:
            raise ConfigError(
                f"model.quantize: found {self.quantize} with model.loras, which are added to whole weights; accepted: none, "
                "fp8."
            )
        if self.offload != "none" and importlib.util.find_spec("accelerate") is None:
            raise ConfigError(
                f"model.offload: found {self.offload}, for which accelerate is not installed; accepted is none."
            )
        if self.offload != "none" and device == "cpu":
            raise ConfigError(
                f"model.offload: found {self.offload}; the model runs on the CPU, where nothing is to be saved; accepted is none."
            )
        for key in ("offload", "quantize"):
            if compile and getattr(self, key) != "none":
                raise ConfigError(
                    f"model.compile: found true with model.{key}={getattr(self, key)}; accepted is false."
                )


def quantization(how: str, dtype: torch.dtype) -> Any:
    """diffusers' config of a backend that quantises weights as they are read; None where none does."""
    if how == "nf4":
        from diffusers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if how == "int8":
        from diffusers import TorchAoConfig
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    return None


def use_memory(model: Any, memory: Memory, device: torch.device) -> None:
    """Bring a loaded model to its device, as ``memory`` says.

    Raises:
        ConfigError: the model has no VAE, or one that cannot do what is asked.
    """
    for key, method in (("vae_tiling", "enable_tiling"), ("vae_slicing", "enable_slicing")):
        if getattr(memory, key):
            _call(model, key, method)
    if memory.quantize == "fp8":
        import torch

        model.network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=model.dtype)
    model.memory = memory
    waits = memory.offload != "none" or (memory.drop_text_encoders and device.type != "cpu")
    if not waits:
        model.to(device)
        return
    from research.models.offload import offload, offload_text_encoders

    if memory.offload != "none":
        offload(model, memory.offload, device)
    else:
        offload_text_encoders(model, device)


def _call(model: Any, key: str, method: str) -> None:
    vae = getattr(model, "vae", None)
    if not hasattr(vae, method):
        raise ConfigError(f"model.{key}: found true; {model.name} has no VAE that can, accepted is false.")
    try:
        getattr(vae, method)()
    except NotImplementedError as error:
        raise ConfigError(
            f"model.{key}: found true; the {type(vae).__name__} of {model.name} cannot, accepted is false."
        ) from error


def device_of(part: Any) -> torch.device:
    """Where a part takes what it is told: its device, or that to which hooks bring it when it is called."""
    found: torch.device = getattr(part, "_runs_on", None) or part.device
    return found

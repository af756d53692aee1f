"""The base class of loaded models of all families: device, dtype, parts, hashes and the solvers they take."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from research.errors import ConfigError, ModelError
from research.hashing import sha256_files
from research.image_tensors import pixels_to_images
from research.models.compiled import compile_network
from research.models.inspect.fit import quietly
from research.models.inspect.weights import check_safetensors, weight_files
from research.models.layers import layer_names
from research.models.memory import Memory
from research.models.summary import check_choices, check_second
from research.models.weak_model import WeakModels
from research.sampling.interfaces import Batch, Denoiser, Model, Solver
from research.showing import card
from research.sigmas import as_schedule
from research.solvers.build import SolverFactory
from research.solvers.upstream_levels import Shape


class BaseModel(Model, ABC):
    """A checkpoint's parts and what the loop asks of them. A new family is one file with a subclass.

    Attributes:
        path: as it was given to `load_model`.
        name: its last part, for tables.
        family: "unet-text" or "unet-pixel".
        weights_sha256: of all weight files, names included.
        device, dtype: where and as what the network runs.
        compiled: whether torch compiles the network, see `load_model`.
        channels_last: whether its weights lie in memory with the channels last.
        memory: see `load_model`.
        distilled_guidance: the guidance scale that a distilled network is told; None for a network that is told none.
        supports: what guidance may require of it.
    """

    family: str
    supports: frozenset[str] = frozenset()
    scheduler_config: Mapping[str, Any] = {}
    network_part = "unet"  # the component that the loop evaluates
    weighted: tuple[str, ...] = ("unet",)  # components that have weights
    compiled = False
    channels_last = False
    memory = Memory()  # how its memory is used
    runs_on: torch.device | None = (
        None  # to where hooks bring parts that wait in the CPU's memory; None where none wait
    )
    pipeline = ""  # the pipeline's class, as model_index.json names it
    notes: tuple[str, ...] = ()  # what is good to know of how it was read, a sentence each
    commit: str | None = None  # of a hub model, what its revision stood for
    distilled_guidance: float | None = (
        None  # the guidance scale that the network is told; None for one that is told none
    )
    # what else the network is told of pictures, see `SizeConditioning`; None for one that is told nothing
    size_conditioning: Mapping[str, Any] | None = None
    max_length: int | None = None  # tokens that the longest text encoder takes; None where that cannot be chosen
    loaded_with: tuple[Mapping[str, Any], Any] | None = (
        None  # arguments of `load_model`, and `weights_stamp` as it was then
    )
    _own: tuple[float | None, int | None] | None = None  # guidance and length before any were chosen
    _dtype: tuple[Any, torch.dtype] | None = None  # with the network that it is of

    def __init__(self, *, path: str, weights_sha256: str, scheduler_config: Mapping[str, Any]):
        self.path = path
        self.name = Path(path).name
        self.weights_sha256 = weights_sha256
        self.scheduler_config = dict(scheduler_config)
        self.weak_models: WeakModels[BaseModel] = WeakModels()

    @classmethod
    def from_directory(
        cls, directory: Path, *, path: str, dtype: torch.dtype, allow_pickle: bool, quantization: Any = None
    ) -> BaseModel:
        """Check every weight file, then load, the network as ``quantization`` says. See `load_model` for the errors."""
        files, safe = [], True
        scheduler_config = _scheduler_config(directory)
        for component in cls.weighted_in(directory):
            found, is_safe = weight_files(directory / component, allow_pickle=allow_pickle)
            files += found
            safe &= is_safe
            for file in found:
                if is_safe:
                    check_safetensors(file)
        try:
            # a component may be pickled and another not: diffusers then takes what there is, safetensors first
            with quietly():
                parts = cls.load_parts(directory, dtype=dtype, safe=safe or None, quantization=quantization)
        except ModelError:
            raise
        except Exception as error:  # what a broken file makes libraries raise is no closed list
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"model.path: {directory} cannot be loaded: {reason}") from error
        # weights keep `requires_grad`, which guidance with gradients has no use for: torch's choice of kernels depends on it, and
        # so do the last bits that are to equal a pipeline's
        return cls(
            path=path, weights_sha256=sha256_files(files, root=directory), scheduler_config=scheduler_config, **parts
        )

    @classmethod
    def weighted_in(cls, directory: Path) -> Sequence[str]:
        """The components with weights that a directory of this family has."""
        return cls.weighted

    @classmethod
    def facts_of(cls, configs: Mapping[str, Mapping[str, Any]], index: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is known of a model of this family from its small files, as attributes of `research.models.summary.Outline`:
        "supports", and "geometry" or "own_shape".

        Args:
            configs: by component.
            index: ``model_index.json``.
        """
        return {"supports": cls.supports}

    @classmethod
    @abstractmethod
    def load_parts(
        cls, directory: Path, *, dtype: torch.dtype, safe: bool | None, quantization: Any = None
    ) -> dict[str, Any]:
        """The constructor's further arguments, read from a directory: from safetensors alone, or (None) from pickles too; the
        network in fewer bits where diffusers' ``quantization`` says so."""

    @property
    @abstractmethod
    def network(self) -> Any:
        """What the loop evaluates."""

    @property
    def network_config(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.network.config
        return config

    @abstractmethod
    def denoiser(self, run: Batch) -> Denoiser: ...

    @abstractmethod
    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]: ...

    @abstractmethod
    def encode(self, run: Batch, pixels: Tensor, stream: str) -> Tensor:
        """Latents of pixels; see `research.sampling.interfaces.Model`."""

    @abstractmethod
    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] ([N, 1, H, W] of a grey model) in about [-1, 1] of latents [N, C, h, w]; differentiable."""

    def decode(self, run: Batch, latents: Tensor) -> list[Image.Image]:
        """PIL images of latents [N, C, h, w]."""
        return pixels_to_images(self.decode_pixels(latents))

    @abstractmethod
    def modules(self) -> list[torch.nn.Module]:
        """Every part with weights."""

    def named_parts(self) -> Mapping[str, Any]:
        """Parts by the names that the pipeline gives them."""
        return {self.network_part: self.network}

    @property
    def device(self) -> torch.device:
        # diffusers' own property walks over all modules, which takes milliseconds
        return self.runs_on or next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        network = self.network
        key = id(network), next(network.parameters()).dtype
        if self._dtype is None or self._dtype[0] != key:
            self._dtype = key, network.dtype
        return self._dtype[1]

    def to(self, device: torch.device) -> BaseModel:
        if self.runs_on is not None:
            if torch.device(device) != self.runs_on:
                raise ConfigError(
                    f"model.offload: a model whose parts wait in the CPU's memory stays on {self.runs_on}."
                )
            return self
        for module in self.modules():
            module.to(device)
        self.weak_models.to(self.device)
        return self

    def layers(self, kind: str) -> list[str]:
        """Names of the network's layers of a kind that a patch may name; see `research.models.layers.layer_names`.

        Raises:
            ConfigError: another kind.
        """
        return layer_names(self.network, kind)

    def choose(
        self,
        *,
        distilled_guidance: float | None = None,
        max_sequence_length: int | None = None,
        size_conditioning: Mapping[str, Any] | None = None,
    ) -> None:
        """Set what a caller may choose of some families, see `load_model`; None for what its pipeline has.

        Raises:
            ConfigError: the model is not of one of these families.
        """
        check_choices(self, distilled_guidance, max_sequence_length, size_conditioning)
        self._own = guidance, length = self._own or (self.distilled_guidance, self.max_length)
        self.distilled_guidance = guidance if distilled_guidance is None else float(distilled_guidance)
        self.max_length = length if max_sequence_length is None else int(max_sequence_length)
        self.size_conditioning = type(self).size_conditioning if size_conditioning is None else dict(size_conditioning)

    def second(self, path: str | os.PathLike[str] | None = None, noise: float = 0.0) -> BaseModel:
        """A second model to guide this one by: made once, kept with this model, in its dtype and on its device.

        Only its network is another; text is encoded and latents are decoded by this model.

        Args:
            path: a zoo name, a directory or a hub id; by default this model itself.
            noise: Gaussian noise on its weights, relative to the standard deviation of each tensor; always the same.

        Raises:
            ConfigError: it cannot be loaded, or its latents, its conditions or its noise schedule are others.
        """
        if path is None and (self.memory.offload != "none" or self.memory.quantize != "none"):
            raise ConfigError(
                "guidance.model: found null with model.offload or model.quantize, of whose weights no copy is made; accepted "
                "is a model."
            )
        found = self.weak_models.get(self, path, noise)
        found.distilled_guidance = self.distilled_guidance  # which may have been chosen since
        return found.made_fast()

    def check_second(self, path: str | os.PathLike[str] | None) -> None:
        """Raise a ConfigError if a model's small files say that it cannot be a `second` of this one."""
        check_second(self, path)

    def solvers(
        self, scheduler: Any, options: Mapping[str, Any] | None = None, *, parity: bool = False, sigmas: Any = None
    ) -> Callable[[], Solver]:
        """A factory of fresh solvers; see `SolverFactory`. A list, array or tensor of sigmas is the grid of these levels.

        Raises:
            ConfigError: also, parity of a model that is compiled, has its channels last or slices its VAE: other last bits.
        """
        changed = {
            "compile": self.compiled,
            "channels_last": self.channels_last,
            "vae_slicing": self.memory.vae_slicing,
        }
        if parity and any(changed.values()):
            which = next(name for name, on in changed.items() if on)
            raise ConfigError(f"model.{which}: found true with parity, which is bit for bit; accepted there is false.")
        return SolverFactory(
            scheduler, options, self.scheduler_config, parity=parity, sigmas=as_schedule(sigmas), schedule=self.schedule
        )

    def schedule(self, scheduler: Any, steps: int, shape: Shape | None, parity: bool) -> Mapping[str, Any]:
        """What a scheduler is told besides the number of steps, as arguments of its ``set_timesteps``; see
        `research.solvers.upstream_levels.Told`."""
        return self.schedule_of(self.network_config, scheduler, steps, shape or self.latent_shape(None, None), parity)

    @classmethod
    def schedule_of(
        cls, network: Mapping[str, Any], scheduler: Any, steps: int, shape: Shape, parity: bool
    ) -> Mapping[str, Any]:
        """The same, told from the network's config."""
        return {}

    def made_fast(self) -> Self:
        """The same model, its network compiled and laid out as ``compiled`` and ``channels_last`` say.

        Raises:
            ConfigError: it is to be compiled, and there is no compiler.
        """
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if self.compiled:
            compile_network(self.network, self.device)
        return self

    def set_attention_slicing(self, size: str | int) -> None:
        """Compute attention in slices, as diffusers' ``enable_attention_slicing``.

        Raises:
            ConfigError: not "auto", "max" or a whole number from 1.
        """
        if size not in ("auto", "max") and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ConfigError(
                f"model.attention_slicing: found {size!r}; accepted: null, auto, max, or a whole number from 1."
            )
        if hasattr(self.network, "set_attention_slice"):
            try:
                self.network.set_attention_slice(size)
            except ValueError as error:
                raise ConfigError(f"model.attention_slicing: found {size!r}; {self.name}: {error}") from error

    def weights_stamp(self) -> Any:
        """Another one after a part was replaced, or weights were trained or written to."""
        return [(id(module), sum(p._version for p in module.parameters())) for module in self.modules()]

    def parameter_count(self) -> int:
        return sum(p.numel() for module in self.modules() for p in module.parameters())

    def __repr__(self) -> str:
        latents = "x".join(map(str, self.latent_shape(None, None)))
        dtype = str(self.dtype).removeprefix("torch.")
        millions = self.parameter_count() / 1e6
        return f"{type(self).__name__}({self.name}, {millions:.3g} M parameters, latents {latents}, {dtype} on {self.device})"

    def _repr_html_(self) -> str:
        channels, height, width = self.latent_shape(None, None)
        facts = {
            "path": self.path,
            "family": self.family,
            "pipeline": self.pipeline,
            "parameters": f"{self.parameter_count():,}",
            "runs": f"{str(self.dtype).removeprefix('torch.')} on {self.device}",
            "latents": f"{channels} x {height} x {width}",
            "own scheduler": str(self.scheduler_config.get("_class_name", "")),
            "offers": ", ".join(sorted(self.supports)),
            "weights": f"sha256 {self.weights_sha256[:16]}",
        }
        return card(self.name, facts)


def _scheduler_config(directory: Path) -> dict[str, Any]:
    file = directory / "scheduler" / "scheduler_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path: {file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"model.path: {file} is no scheduler config: found a {type(config).__name__}.")
    return config

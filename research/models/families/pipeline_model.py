"""What the families share: a model made of the parts of a pipeline's directory, told of texts by several encoders."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from research.caches import MIB, Cache
from research.errors import ConfigError
from research.models.denoiser import NetworkDenoiser, Together
from research.models.families.texts import Texts
from research.models.geometry import LatentGeometry
from research.models.inspect.find_model import read_index
from research.models.inspect.parts import WEIGHTED, entry_of, wanted_parts
from research.models.inspect.weights import loaded_module
from research.models.latent_model import LatentModel
from research.models.memory import device_of
from research.sampling.interfaces import Batch, Condition, Solver

_conditions = Cache("conditions", 512 * MIB)  # one of Flux takes 4 MB in bf16


class PipelineModel(LatentModel):
    """A latent diffusion model of a modern family. A family is a subclass: how texts are encoded, how the network is called.

    Attributes:
        parts: networks and tokenizers by the names that the pipeline gives them.
        index: ``model_index.json``.
        steps_by_seed: whether the pipeline hands a scheduler's steps the generators of the images; if not, their noise is
            torch's own and no seed's.
        together: with parity, which branches the pipeline evaluates in one batch, see `NetworkDenoiser`.
    """

    supports = frozenset({"text", "uncond", "latents", "attention"})
    middle_layers: tuple[str, ...] = ()
    network_part = "transformer"
    together: Together = "all"
    steps_by_seed = True

    def __init__(self, *, parts: Mapping[str, Any], index: Mapping[str, Any], **common: Any):
        super().__init__(**common)
        self.parts, self.index = dict(parts), dict(index)
        configs = {name: part.config for name, part in self.parts.items() if hasattr(part, "config")}
        for name, value in self.facts_of(configs, index).items():
            setattr(self, name, value)
        self.vae = self.parts["vae"]

    # -- what a family says of itself

    @abstractmethod
    def encode_texts(self, texts: Sequence[str], *, negative: bool) -> Condition:
        """What the network is told of sentences, a row each, all encoded in one batch as the pipeline does it."""

    @abstractmethod
    def evaluate(self, x: Tensor, t: Tensor, told: Condition) -> Tensor:
        """The network's prediction [B, C, h, w] for latents of the same shape at times ``t`` (0-d or [B]); epsilon, x0, v or
        flow, as its scheduler says."""

    def tokenizers(self) -> Sequence[tuple[Any, int]]:
        """Tokenizers, with how many tokens each encoder takes."""
        return []

    def of_size(self, told: Condition, size: tuple[int, int]) -> Condition:
        """What the network is told of the pictures' height and width in pixels, besides their text."""
        return told

    def not_given(self, told: Condition) -> Condition:
        """What stands for a negative prompt that nobody gave, of the empty sentence's condition."""
        return told

    @classmethod
    def geometry_of(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> LatentGeometry:
        """The shapes of latents, told from configs."""
        return LatentGeometry.of(network, vae)

    # -- what they share

    @classmethod
    def facts_of(cls, configs: Mapping[str, Mapping[str, Any]], index: Mapping[str, Any]) -> Mapping[str, Any]:
        network, vae = configs.get(cls.network_part, {}), configs.get("vae", {})
        return {
            "supports": cls.supports,
            "geometry": cls.geometry_of(network, vae),
            "middle_layers": cls.middle_layers,
            "resizes_pictures": cls.resizes_pictures,
            "encodes_once": cls.encodes_once,
        }

    @classmethod
    def weighted_in(cls, directory: Path) -> Sequence[str]:
        return [name for name in wanted_parts(read_index(directory)) if name in WEIGHTED]

    @classmethod
    def load_parts(
        cls, directory: Path, *, dtype: torch.dtype, safe: bool | None, quantization: Any = None
    ) -> dict[str, Any]:
        import diffusers
        import transformers

        index, parts = read_index(directory), {}
        for name in wanted_parts(index):
            library, class_name = entry_of(index[name])
            loader = getattr(transformers if library == "transformers" else diffusers, str(class_name))
            if name == "scheduler":
                continue
            if name not in WEIGHTED:
                parts[name] = loader.from_pretrained(directory, subfolder=name, local_files_only=True)
                continue
            fewer_bits = {"quantization_config": quantization} if quantization and name == cls.network_part else {}
            loaded = loader.from_pretrained(
                directory,
                subfolder=name,
                use_safetensors=safe,
                local_files_only=True,
                output_loading_info=True,
                **{"dtype" if library == "transformers" else "torch_dtype": dtype},
                **fewer_bits,
            )
            parts[name] = loaded_module(loaded, directory / name)
        return {"parts": parts, "index": index}

    def solvers(
        self, scheduler: Any, options: Mapping[str, Any] | None = None, *, parity: bool = False, sigmas: Any = None
    ) -> Callable[[], Solver]:
        """See `BaseModel.solvers`.

        Raises:
            ConfigError: also, parity of a scheduler that draws noise in its steps, where the pipeline hands it no generator.
        """
        made = super().solvers(scheduler, options, parity=parity, sigmas=sigmas)
        if parity and not self.steps_by_seed and "deterministic" not in (solver := made()).supports:
            raise ConfigError(
                f"scheduler: {solver.name} adds noise in its steps, for which the pipeline of {self.name} has torch's own "
                "generator and no seed's; accepted are parity=false, or a scheduler that adds none."
            )
        return made

    @property
    def network(self) -> Any:
        return self.parts[self.network_part]

    @property
    def text(self) -> Texts:
        return Texts(self.tokenizers(), self.weights_sha256)  # whose lengths a caller may choose

    def named_parts(self) -> Mapping[str, Any]:
        return self.parts

    def modules(self) -> list[torch.nn.Module]:
        return [part for part in self.parts.values() if isinstance(part, torch.nn.Module)]

    def denoiser(self, run: Batch) -> NetworkDenoiser:
        return NetworkDenoiser(
            self.network,
            self.evaluate,
            kind=run.solver.kind,
            together=self.together if run.parity else "all",
            look=run.look,
            timings=run.timings,
        )

    @torch.no_grad()
    def condition(
        self,
        texts: Sequence[str],
        *,
        negative: bool = False,
        given: bool = True,
        size: tuple[int, int] | None = None,
        together: bool = False,
    ) -> Condition:
        """See `research.sampling.interfaces.Model.condition`; texts seen before are kept by encoders and text."""
        if together:
            told = self.encode_texts(list(texts), negative=negative)
        else:
            told = Condition.joined([self._kept(text, negative) for text in texts])
        if negative and not given:
            told = self.not_given(told)
        return told if size is None else self.of_size(told, size)

    def _kept(self, text: str, negative: bool) -> Condition:
        encoders = [part for name, part in self.parts.items() if name.startswith("text_encoder")]
        seen = tuple((weakref.ref(part), device_of(part), part.dtype) for part in encoders)
        key = type(self), seen, self.max_length, text, negative
        return _conditions.get(key, lambda: self.encode_texts([text], negative=negative), _bytes_of)


def patched_geometry(network: Mapping[str, Any], vae: Mapping[str, Any]) -> LatentGeometry:
    """Shapes of a transformer on patches of latents."""
    size = network.get("sample_size", 128)
    return LatentGeometry(
        in_channels=network.get("in_channels", 4),
        latent_channels=vae.get("latent_channels", 4),
        sample_size=(size, size),
        vae_factor=2 ** (len(vae.get("block_out_channels", (64,))) - 1),
        patch=network.get("patch_size", 2),
    )


def _bytes_of(told: Condition) -> int:
    tensors = [told.embeds, told.pooled, told.mask, *told.extra.values()]
    return sum(value.nbytes for value in tensors if isinstance(value, Tensor))

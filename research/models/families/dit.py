"""DiT (Peebles & Xie, arXiv:2212.09748): a transformer of ImageNet's classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from research.errors import ConfigError
from research.models.families.pipeline_model import PipelineModel
from research.sampling.interfaces import Condition, Solver


class DiTModel(PipelineModel):
    """Class-conditional; where its network learned sigmas too, they are dropped."""

    family = "dit"
    steps_by_seed = False
    supports = frozenset({"uncond", "latents", "class_label", "attention"})

    @classmethod
    def facts_of(cls, configs: Mapping[str, Mapping[str, Any]], index: Mapping[str, Any]) -> Mapping[str, Any]:
        classes = configs.get("transformer", {}).get("num_embeds_ada_norm", 1000)
        # the pipeline has 1000 for the null class whatever the network; it is the one after the last
        return {**super().facts_of(configs, index), "n_classes": classes, "null_class": classes}

    def solvers(
        self, scheduler: Any, options: Mapping[str, Any] | None = None, *, parity: bool = False, sigmas: Any = None
    ) -> Callable[[], Solver]:
        """See `BaseModel.solvers`.

        Raises:
            ConfigError: also, parity of a scheduler that scales its latents, with which the pipeline shows its network next to no
                noise.
        """
        made = super().solvers(scheduler, options, parity=parity, sigmas=sigmas)
        if parity and float(getattr((solver := made()).scheduler, "init_noise_sigma", 1.0)) != 1.0:  # type: ignore[attr-defined]
            raise ConfigError(
                f"scheduler: with {solver.name} DiTPipeline neither scales its noise nor steps from unscaled latents; accepted "
                "with parity are ddim, dpmpp_2m, unipc and others whose latents start with a deviation of 1."
            )
        return made

    def encode_texts(self, texts: Sequence[str], *, negative: bool) -> Condition:
        raise ConfigError(f"model: {self.name} takes class labels and no text.")

    def denormalised(self, latents: Tensor) -> Tensor:
        return 1 / self.vae.config.scaling_factor * latents  # the pipeline multiplies: other bits than a division

    def evaluate(self, x: Tensor, t: Tensor, told: Condition) -> Tensor:
        out = self.network(x, timestep=t.expand(len(x)), class_labels=told.class_labels, return_dict=False)[0]
        return out[:, : x.shape[1]]

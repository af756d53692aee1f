"""The interfaces of what plugs into the loop: model, scheduler (solver), guidance, task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from research.sampling.hooks import Hook, not_inherited
from research.sampling.noise import NoiseSource
from research.sampling.prediction import Kind, Prediction
from research.sampling.timeline import Stage, Timeline

if TYPE_CHECKING:
    from research.sampling.state import Run, StepState


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """What one prediction is conditioned on; each entry has one row an image."""

    embeds: Tensor | None = None  # text embeddings [N, tokens, dim]
    class_labels: Tensor | None = None  # [N], integers
    channels: Tensor | None = None  # [N, k, h, w], put after the latents as further input channels
    extra: Mapping[str, Any] = field(default_factory=dict)  # for model families to come (pooled text, image size, ...)


class Patch(Protocol):
    """A change of some of the network's layers, for the rows of one branch."""

    kind: str  # of layers: "self-attention", "cross-attention" or "block"
    layers: Sequence[str]  # patterns for their names

    def __call__(self, layer: torch.nn.Module, forward: Callable[..., Tensor], hidden: Tensor, **kwargs: Any) -> Tensor:
        """What the layer returns for the rows of the branch; ``forward`` is its own, and all tensors hold these rows alone."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One prediction that a guidance asks for."""

    name: str  # "cond", "uncond", "perturbed", ...
    condition: Condition
    model: str = "main"  # a name in `run.models`; autoguidance names a second model
    patches: tuple[Patch, ...] = ()  # changes of the network's layers, active for this branch only
    time: Tensor | None = None  # [N] or 0-d: what the model is told instead of the stage's own time


@dataclass(slots=True, eq=False)
class Guided:
    """What guidance hands to the scheduler: the combined prediction, and the noise to step along if that is another one.

    With ``renoise`` the step goes from the x0 of ``prediction`` along the noise of ``renoise``; "first-order" schedulers can.
    """

    prediction: Prediction
    renoise: Prediction | None = None  # CFG++ steps along the unconditional noise


@dataclass(slots=True, eq=False)
class StepOutput:
    """The latents after a scheduler's step [N, C, h, w], and the clean estimate it worked with, where it says."""

    x: Tensor
    x0: Tensor | None = None


class Denoiser(Protocol):
    """A model made ready for one run."""

    def predict(self, x: Tensor, stage: Stage, branches: Sequence[Branch]) -> dict[str, Prediction]:
        """Evaluate each branch once for latents ``x`` [N, C, h, w] scaled by the scheduler; one prediction a branch."""
        ...


class Guidance:
    """How predictions are combined. This base asks for the conditional one and hands it on: no guidance.

    Attributes:
        scale: how strong it is. Modifiers may set it for a stage, so read it at each.
        neutral: the scale at which it is no guidance, or None if there is none.
        scale_range: the scales that it takes.
        requires: what it needs of model and scheduler, checked against what they support before anything runs.
    """

    scale: float = 1.0
    neutral: float | None = 1.0
    scale_range: tuple[float, float] = (-math.inf, math.inf)
    requires: frozenset[str] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        not_inherited(cls, Guidance, "vectorises")

    def vectorises(self) -> bool:
        """Whether images of several scales may share a batch: `combine` then finds a tensor [N, 1, 1, 1] as ``scale``.

        At all scales at which this is true it asks for the same branches, and what it does to an image depends on that image
        alone. A subclass does not inherit it: what it changes may be another thing.
        """
        return False

    def check(self, model: Model, solver: Solver) -> None:
        """Raise a UserError for what cannot work with them. ``model`` may be an outline, made before weights load."""

    def start(self, run: Run) -> None:
        """Once a run, before the first stage: reset what is kept from step to step; further models go to ``run.models``."""

    def differentiates(self, state: StepState) -> bool:
        """Whether `combine` takes gradients here: predictions are then made with them, and ``state.x_before`` is a leaf."""
        return False

    def branches(self, state: StepState) -> Sequence[Branch]:
        """The predictions needed at this stage; what is not asked for is not computed. May differ from stage to stage."""
        return [Branch("cond", state.conditions["cond"])]

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        """One guided prediction of the predictions by branch name. Leave gradients in it: one around it may need them."""
        return Guided(predictions["cond"])


class Solver(Protocol):
    """A scheduler for one run: built fresh, used once."""

    supports: frozenset[str]
    name: str
    kind: Kind  # the kind of prediction the model makes for it
    notes: Sequence[str]  # what the user should know about its timeline; the result's warnings hold it

    def timeline(
        self, steps: int, *, strength: float = 1.0, device: torch.device, by_strength: bool = False
    ) -> Timeline:
        """The schedule of ``steps`` steps, or its last part; ``by_strength`` says that the task slices, if only at strength 1."""
        ...

    def start(self, noise: NoiseSource) -> None:
        """Before the first step, once the timeline is made."""
        ...

    def scale_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise as start latents, scaled by the scheduler's first noise level."""
        ...

    def scale_input(self, x: Tensor, stage: Stage) -> Tensor: ...

    def add_noise(self, clean: Tensor, noise: Tensor, stage: Stage | None) -> Tensor:
        """Clean latents noised to the level of a stage; ``None`` is after the last stage, where they stay clean."""
        ...

    def step(self, guided: Guided, x: Tensor, stage: Stage, noise: NoiseSource) -> StepOutput: ...


class Model(Protocol):
    """A loaded checkpoint: its parts as the loop and the tasks need them."""

    name: str
    device: torch.device
    dtype: torch.dtype
    supports: frozenset[str]
    weights_sha256: str

    def solvers(self, scheduler: Any, options: Mapping[str, Any] | None, *, parity: bool) -> Callable[[], Solver]:
        """Check a scheduler by name, class name or object, and return what builds a fresh one for each run."""
        ...

    def denoiser(self, run: Run) -> Denoiser: ...

    def layers(self, kind: str) -> Sequence[str]:
        """Names of the network's layers of a kind that a `Patch` may name."""
        ...

    def encode(self, run: Run, pixels: Tensor, stream: str) -> Tensor:
        """Latents [N, C, h, w] of pixels [N or 1, 3, H, W] in [-1, 1]; ``stream`` names the noise that the encoder draws."""
        ...

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Channels, height and width of the latents for pixels ``height`` x ``width`` (None: the model's own size)."""
        ...

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] in about [-1, 1] of latents; differentiable."""
        ...

    def decode(self, run: Run, latents: Tensor) -> list[Any]:
        """PIL images of the final latents."""
        ...


class Task(Protocol):
    """Where the loop starts, what it is conditioned on and what comes out. A task has no loop of its own."""

    name: str
    prompts: Sequence[str] | str | None
    requires: frozenset[str]  # of model and scheduler, like a guidance's

    def claims(self, model: Model) -> frozenset[str]:
        """What its own hooks claim, see `Hook.claims`."""
        ...

    def seeds(self, given: Sequence[int] | None) -> Sequence[int]:
        """One seed an image. Most tasks take those given; one that names its own images (the frames of a path) makes them."""
        ...

    def check(self, model: Model, n_images: int) -> None:
        """Raise a UserError for what cannot work with this model or number of images, before anything is computed."""
        ...

    def solver(self, solver: Solver) -> Solver:
        """What the loop steps with: the scheduler's solver, or one wrapped around it."""
        ...

    def timeline(self, solver: Solver, steps: int, device: torch.device) -> Timeline:
        """The part of the solver's timeline that is walked."""
        ...

    def conditions(self, run: Run) -> Mapping[str, Condition]:
        """Conditions by name ("cond", "uncond", ...), each made when it is first asked for."""
        ...

    def condition(self, run: Run, texts: str | Sequence[str]) -> Condition:
        """A condition like "cond" of another sentence, or of one an image of the job."""
        ...

    def start(self, run: Run) -> Tensor:
        """The start latents [N, C, h, w]."""
        ...

    def hooks(self, run: Run) -> Sequence[Hook]: ...

    def finish(self, run: Run, latents: Tensor) -> list[Any]:
        """PIL images, one an image of the batch."""
        ...

    def pictures(self, images: Sequence[Any]) -> Mapping[str, Any]:
        """Further pictures of all images together by name: a PIL image, or a list of them for an animation."""
        ...

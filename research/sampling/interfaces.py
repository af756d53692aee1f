"""The interfaces of what plugs into the loop (model, scheduler, guidance, task, hook), and what the loop hands to them: a
`Batch` before its start, the `Run`, and each stage's `StepState`."""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from research.arguments import Recorded
from research.errors import ConfigError
from research.sampling.memory import Remembering
from research.sampling.noise import NoiseSource
from research.sampling.prediction import Kind, Prediction, to_epsilon, to_x0
from research.sampling.timeline import Stage, Timeline

Scale = float | Tensor  # of a guidance: a number, or [N, 1, 1, 1] where images of several scales share a batch


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """What one prediction is conditioned on; each entry has one row an image."""

    embeds: Tensor | None = None  # text embeddings [N, tokens, dim]
    class_labels: Tensor | None = None  # [N], integers
    channels: Tensor | None = None  # [N, k, h, w], put after the latents as further input channels
    pooled: Tensor | None = None  # one vector for the whole text [N, dim]
    mask: Tensor | None = None  # [N, tokens], 1 at the embeddings that the network attends to; None for all
    # of single families, by name: tensors [N, ...] (picture sizes, ...), or what all rows share
    extra: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def joined(conditions: Sequence[Condition]) -> Condition:
        """The rows of all of them, one after another. Where texts differ in length, zeros that the mask leaves out fill up."""
        if len(conditions) == 1:
            return conditions[0]
        first = conditions[0]
        embeds, mask = _joined_texts(conditions)
        return Condition(
            embeds=embeds,
            class_labels=_joined([each.class_labels for each in conditions]),
            channels=_joined([each.channels for each in conditions]),
            pooled=_joined([each.pooled for each in conditions]),
            mask=mask,
            extra={
                name: torch.cat([each.extra[name] for each in conditions]) if isinstance(value, Tensor) else value
                for name, value in first.extra.items()
            },
        )

    def repeated(self, count: int) -> Condition:
        """Each row ``count`` times, side by side."""
        return self.mapped(lambda rows: rows.repeat_interleave(count, dim=0))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """The same with every tensor changed."""
        known = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "extra"}
        changed = {name: None if value is None else change(value) for name, value in known.items()}
        extra = {name: change(value) if isinstance(value, Tensor) else value for name, value in self.extra.items()}
        return Condition(**changed, extra=extra)

    def mixed(self, other: Condition, mix: Callable[[Tensor, Tensor], Tensor]) -> Condition:
        """This one's rows with the text of another mixed in, the pooled one too; what is no text is this one's own.

        Args:
            other: of the same family; the shorter of two texts is filled up with zeros.
            mix: makes one tensor [N, ..., dim] of two, in float32.
        """
        if self.embeds is None or other.embeds is None:
            return self
        texts, masks = _joined_texts([self, other])
        assert texts is not None
        count = len(self.embeds)
        one, two = texts[:count].float(), texts[count:].float()
        # what either of them attends to
        mask = None if masks is None else torch.maximum(masks[:count], masks[count:])
        pooled = self.pooled
        if pooled is not None and other.pooled is not None:
            pooled = mix(pooled.float(), other.pooled.float()).to(pooled.dtype)
        return replace(self, embeds=mix(one, two).to(self.embeds.dtype), pooled=pooled, mask=mask)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None


def _joined_texts(conditions: Sequence[Condition]) -> tuple[Tensor | None, Tensor | None]:
    """Embeddings and masks of the rows of all conditions."""
    embeds = [each.embeds for each in conditions if each.embeds is not None]
    longest = max((each.shape[1] for each in embeds), default=0)
    even = all(each.shape[1] == longest for each in embeds)
    if even and all(each.mask is None for each in conditions):
        return _joined(embeds), None
    masks = []
    for each in conditions:
        assert each.embeds is not None
        mask = each.embeds.new_ones(each.embeds.shape[:2], dtype=torch.long) if each.mask is None else each.mask
        masks.append(torch.nn.functional.pad(mask, (0, longest - mask.shape[1])))
    padded = [torch.nn.functional.pad(each, (0, 0, 0, longest - each.shape[1])) for each in embeds]
    return torch.cat(padded), torch.cat(masks)


class Patch(Protocol):
    """A change of some of the network's layers, for the rows of one branch."""

    kind: str  # of layers, see `research.models.layers.layer_names`
    layers: Sequence[str]  # patterns for their names

    def __call__(self, layer: torch.nn.Module, forward: Callable[..., Tensor], hidden: Tensor, **kwargs: Any) -> Tensor:
        """What the layer returns for the rows of the branch; ``forward`` is its own, and all tensors hold these rows alone."""
        ...


@runtime_checkable
class RecordingPatch(Patch, Protocol):
    """A `Patch` that says whether it changes anything. Those that say nothing are there to change their layers, and are
    refused if they do not."""

    alters: bool  # False: it only looks, and hands on what the layer returns


@dataclass(slots=True, eq=False)
class Branch:
    """One prediction that a guidance asks for."""

    name: str  # "cond", "uncond", "perturbed", ...
    condition: Condition
    model: str = "main"  # a name in `run.models`; autoguidance names a second model
    patches: tuple[Patch, ...] = ()  # changes of the network's layers, active for this branch only
    time: Tensor | None = None  # [N] or 0-d: what the model is told instead of the stage's own time
    apart: bool = False  # evaluated in a batch of its own: its condition is of another form than the others'


@dataclass(slots=True, eq=False)
class Guided:
    """What guidance hands to the scheduler: the combined prediction, and the noise to step along if that is another one.

    With ``renoise`` the step goes from the x0 of ``prediction`` along the noise of ``renoise``; schedulers that offer "renoise"
    can.
    With ``shift`` the latents are moved once the step is taken. A guidance around another one hands on what it does not change
    (``dataclasses.replace``).
    """

    prediction: Prediction
    renoise: Prediction | None = None  # CFG++ steps along the unconditional noise
    # added to the latents after the step (DPS), [N, C, h, w] in the scaling that they then have
    shift: Tensor | None = None


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


# --- what the loop hands to plugs


class InForce:
    """Which scale a guidance has in a batch or at a stage: its own, unless a modifier around it says another."""

    __slots__ = ("scales",)

    scales: dict[int, Scale]  # by the id of a guidance that has another than its own

    def scale_of(self, guidance: Guidance) -> Scale:
        """The scale in force of a guidance; of a modifier, that of the guidance inside."""
        plug = guidance.plug
        return self.scales.get(id(plug), plug.scale)

    @contextmanager
    def at_scale(self, guidance: Guidance, scale: Scale) -> Iterator[None]:
        """For as long as it is open, another scale is in force for a guidance. The guidance itself stays as it is.

        A plug from outside the project may read its own attribute ``scale``, so that one is set too, and put back.
        """
        plug, before = guidance.plug, self.scales
        self.scales = {**before, id(plug): scale}
        foreign = not type(plug).__module__.startswith("research.")
        own = plug.scale
        if foreign:
            setattr(plug, "scale", scale)  # noqa: B010 - a tensor [N, 1, 1, 1] where it says that it vectorises
        try:
            yield
        finally:
            self.scales = before
            if foreign:
                plug.scale = own


@dataclass(eq=False, kw_only=True)
class Batch(InForce):
    """Images that go through the loop together, as far as is known before their start: read by models, guidance and tasks,
    who may use ``models``, ``trace``, ``scores`` and ``warn``."""

    model: Model
    solver: Solver
    guidance: Guidance
    task: Task
    seeds: tuple[int, ...]
    rows: tuple[int, ...]  # where the batch's images stand among all images asked for
    n_images: int  # all images asked for
    noise: NoiseSource
    timeline: Timeline
    parity: bool = False
    # where the batch's rows stand among those asked for; not as `rows` where an image is made several times
    places: tuple[int, ...] = ()
    scales: dict[int, Scale] = field(default_factory=dict)  # see `InForce`
    models: dict[str, Model] = field(default_factory=dict)  # by the names that branches use; "main" is the model
    cleanup: ExitStack = field(default_factory=ExitStack)  # closed when the run ends, however it ends
    # standard normal [N, C, h, w], what the task makes the start latents of; None for a task that starts from something else
    start_noise: Tensor | None = None
    task_tensors: dict[str, Tensor] = field(default_factory=dict)  # the task's own, from its start to its finish
    nfe: Counter[str] = field(default_factory=Counter)  # model evaluations an image, by branch
    timings: dict[str, float] = field(default_factory=dict)  # seconds
    trace: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)  # by name: a number an image
    warnings: list[str] = field(default_factory=list)
    truncated: list[dict[str, str]] = field(default_factory=list)
    looks: list[tuple[Tensor, Callable[[Tensor], None]]] = field(default_factory=list)  # put off; see `look`

    def __post_init__(self) -> None:
        self.models.setdefault("main", self.model)
        self.places = self.places or self.rows

    @cached_property
    def conditions(self) -> Mapping[str, Condition]:
        """By name ("cond", "uncond", ...), each made when it is first asked for."""
        return self.task.conditions(self)

    def going_back(self, stage: Stage) -> bool:
        """Whether a stage is on the way from clean latents to noise, as the first half of an inversion is."""
        return self.solver.turn is not None and stage.index <= self.solver.turn

    def warn(self, message: str) -> None:
        """Note something the user should know; it is kept once and goes to the result."""
        if message not in self.warnings:
            self.warnings.append(message)

    def look(self, value: Tensor, check: Callable[[Tensor], None]) -> None:
        """Have a check read a value: at once if it is on the CPU, and else where the loop reads latents anyway, every so many
        stages and after the last, as a GPU that is read from at each stage stands still.

        Args:
            value: small: a flag, or a number an image.
            check: takes it, on the CPU, and raises what is wrong.
        """
        if value.device.type == "cpu":
            check(value.detach())
        else:
            self.looks.append((value.detach(), check))

    def look_now(self) -> None:
        """Read what was put off, in the order in which it came."""
        due = list(self.looks)
        self.looks.clear()
        for value, check in due:
            check(value.cpu())

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the wall-clock seconds of a block to ``timings[name]``, with the GPU's queue emptied at both ends."""
        self._synchronize()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


@dataclass(eq=False, kw_only=True)
class Run(Batch):
    """A batch on its way through the loop: what hooks see. They may replace ``x`` at the start and at the end."""

    x: Tensor  # the latents [N, C, h, w]: those of the start until the last stage, then the final ones
    denoiser: Denoiser  # evaluates branches, with what guidance and hooks put around it
    model_inputs: Callable[[StepState, Tensor], Tensor]  # what the hooks' `pre_model` makes of the inputs

    @classmethod
    def begin(
        cls, batch: Batch, *, x: Tensor, denoiser: Denoiser, model_inputs: Callable[[StepState, Tensor], Tensor]
    ) -> Run:
        """The run of a batch: it goes on with the batch's own conditions, noise, trace and counts."""
        known = {each.name: getattr(batch, each.name) for each in fields(batch)}
        run = cls(**known, x=x, denoiser=denoiser, model_inputs=model_inputs)
        run.__dict__["conditions"] = batch.conditions
        return run


class StepState(InForce):
    """One stage: what guidance and hooks see of it. Assign ``x``, ``conditions`` or ``guided`` to replace them.

    Attributes:
        x: the latents [N, C, h, w]: before the step until the solver has run, after it from then on.
        x_before: the latents that the predictions belong to.
        scale: that in force of the run's guidance: its own, or, from the moment that it is asked, what modifiers make of it here.
        conditions: by name; a hook may replace them for this stage.
        branches: what guidance asked for; empty until then.
        predictions: by branch; empty until the model was evaluated.
        guided: what guidance made of them; there is none before it was asked.
    """

    __slots__ = ("_latest", "branches", "conditions", "guided", "predictions", "run", "stage", "x", "x_before")

    guided: Guided

    def __init__(self, run: Run, stage: Stage, x: Tensor):
        self.run = run
        self.scales: dict[int, Scale] = {}
        self._latest: dict[int, Scale] = {}
        self.stage = stage
        self.x = x
        self.x_before = x
        self.conditions: Mapping[str, Condition] = run.conditions
        self.branches: Sequence[Branch] = ()
        self.predictions: Mapping[str, Prediction] = {}

    @property
    def scale(self) -> Scale:
        plug = self.run.guidance.plug
        return self.scales.get(id(plug), self._latest.get(id(plug), plug.scale))

    @contextmanager
    def at_scale(self, guidance: Guidance, scale: Scale) -> Iterator[None]:
        self._latest[id(guidance.plug)] = scale  # hooks after guidance see what was in force in it
        with super().at_scale(guidance, scale):
            yield

    def predict(self, branches: Sequence[Branch], x: Tensor | None = None) -> dict[str, Prediction]:
        """Evaluate branches at this stage and count them.

        Args:
            branches: each of its own name.
            x: other latents than the stage's, [N, C, h, w] in the stage's scaling.

        The loop calls it with what guidance asks for; a guidance that needs one prediction to ask for another calls it itself.
        """
        run = self.run
        latents = run.solver.scale_input(self.x_before if x is None else x, self.stage)
        predictions = run.denoiser.predict(run.model_inputs(self, latents), self.stage, branches)
        for branch in predictions:
            run.nfe[branch] += 1
        return predictions

    @property
    def x0(self) -> Tensor:
        """The clean latents that the guided prediction implies, [N, C, h, w]."""
        return to_x0(self.guided.prediction, self.x_before, self.stage)

    @property
    def epsilon(self) -> Tensor:
        """The noise that the guided prediction implies, [N, C, h, w]."""
        return to_epsilon(self.guided.prediction, self.x_before, self.stage)


# --- what plugs into the loop


class TextEncoding(Protocol):
    """Sentences to embeddings."""

    tokenizer: Any  # of transformers

    @property
    def max_tokens(self) -> int:
        """Tokens it takes, begin and end included."""
        ...

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [N, tokens, dim] of each text by itself, so that they do not depend on what it is encoded with."""
        ...

    def encode_together(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [N, tokens, dim] of all texts in one batch, as a diffusers pipeline computes them."""
        ...

    def dropped(self, text: str) -> str | None:
        """What of a text is cut off because the encoder takes no more, or None."""
        ...


class ModelFacts(Protocol):
    """What is known of a model from its small files, before weights load: enough to check that plugs fit it."""

    name: str
    path: str
    supports: frozenset[str]  # what guidance, tasks and hooks may require of it
    family: str | None = None  # "unet-text", "sd3", ...; None for a model that any task may use
    n_classes: int | None = None  # of a class-conditional model
    null_class: int | None = None  # the label that stands for no class, of a model trained with one
    distilled_guidance: float | None = (
        None  # the guidance scale that its network is told; None for one that is told none
    )
    # what the image-to-image pipeline of its family does with pictures
    resizes_pictures: bool = False  # to the model's own size, where no other is asked for
    encodes_once: bool = (
        False  # with parity: one picture for several seeds is encoded once, with the first seed's noise
    )
    tells_strength: bool = False  # with parity: the scheduler is told the strength and makes all steps below it (LCM)

    @property
    def role(self) -> str:
        """What the network's input channels are: "text" (the latents alone), "inpaint" (mask, masked latents) or "depth"."""
        return "text"

    @property
    def vae_factor(self) -> int:
        """Pixels a latent, on a side; 1 for a model on pixels."""
        return 1

    @property
    def size_multiple(self) -> int:
        """Pixels that height and width must be a multiple of."""
        return self.vae_factor

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The noise schedule it was trained with, as diffusers writes it."""
        return {}

    @property
    def network_config(self) -> Mapping[str, Any]:
        """The diffusers config of its network; empty for a network of another kind."""
        return {}

    @property
    def has_depth(self) -> bool:
        """Whether it comes with a depth estimator."""
        return False

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Channels, height and width of the latents for pixels ``height`` x ``width`` (None: the model's own size)."""
        ...

    def layers(self, kind: str) -> Sequence[str]:
        """Names of the network's layers of a kind that a `Patch` may name."""
        return ()

    @property
    def middle_layers(self) -> Sequence[str]:
        """Patterns that "mid" stands for in a network without a middle block; none: the block in the middle."""
        return ()

    def check_second(self, path: str | None) -> None:
        """Raise a ConfigError if another model, by its small files, cannot guide this one; see `Model.second`."""
        raise ConfigError(f"guidance: Autoguidance needs a model with a network; {self.name} has none.")


class Model(ModelFacts, Protocol):
    """A loaded checkpoint: its parts as the loop, tasks, guidance and hooks need them.

    A class that inherits it gets the defaults of what it does not have: text, depth, layers, a second model.
    """

    weights_sha256: str
    notes: Sequence[str] = ()  # what is good to know of how it was read; the result's warnings hold it
    guided_by_negative_alone: bool = False  # whether its pipeline guides only where a negative prompt is given

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def noise_dtype(self) -> torch.dtype:
        """In which start noise is drawn and latents are kept between stages."""
        return self.dtype

    @property
    def network(self) -> torch.nn.Module:
        """What the loop evaluates."""
        raise ConfigError(f"model: {self.name} has no network.")

    @property
    def text(self) -> TextEncoding:
        """Its text encoder; a model that has one supports "text"."""
        raise ConfigError(f"model: {self.name} takes no text.")

    def condition(
        self,
        texts: Sequence[str],
        *,
        negative: bool = False,
        given: bool = True,
        size: tuple[int, int] | None = None,
        together: bool = False,
    ) -> Condition:
        """What the network is told of sentences: a row a sentence, each encoded by itself.

        Args:
            texts: the sentences.
            negative: they are what guidance leads away from; some families put an instruction before the others.
            given: False where nobody named a negative prompt and the empty sentence stands for it.
            size: height and width of the pictures in pixels, for families that are told.
            together: encode all in one batch, as a diffusers pipeline does with a list of prompts.
        """
        text = self.text
        return Condition(embeds=text.encode_together(texts) if together else text.encode(texts))

    def depth_maps(self, images: Sequence[Any]) -> Sequence[Tensor]:
        """Relative depth [H, W] of each picture, by its own estimator."""
        raise ConfigError(f"model: {self.name} has no depth estimator.")

    def solvers(
        self, scheduler: Any, options: Mapping[str, Any] | None, *, parity: bool, sigmas: Any = None
    ) -> Callable[[], Solver]:
        """Check a scheduler by name, class name or object, and return what builds a fresh one for each run."""
        ...

    def denoiser(self, run: Batch) -> Denoiser: ...

    def encode(self, run: Batch, pixels: Tensor, stream: str) -> Tensor:
        """Latents [N, C, h, w] of pixels [N or 1, 3, H, W] in [-1, 1]; ``stream`` names the noise that the encoder draws."""
        ...

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] in about [-1, 1] of latents; differentiable."""
        raise ConfigError(f"model: {self.name} has no decode_pixels(latents).")

    def decode(self, run: Batch, latents: Tensor) -> list[Any]:
        """PIL images of the final latents."""
        ...

    def pictures(self, images: Sequence[Any]) -> Mapping[str, Any]:
        """Further pictures of all images together by name: of a model of points, their scatter plot."""
        return {}

    def modules(self) -> Sequence[torch.nn.Module]:
        """Every part with weights."""
        return ()

    def second(self, path: str | None = None, noise: float = 0.0) -> Model:
        """A second model to guide this one by, that differs in its network alone: another checkpoint, or its own weights
        with noise."""
        raise ConfigError(f"guidance: Autoguidance needs a model with a network; {self.name} has none.")


class Solver(Protocol):
    """A scheduler for one run: built fresh, used once."""

    supports: frozenset[str]
    name: str
    kind: Kind  # the kind of prediction the model makes for it
    parity: bool  # whether it equals diffusers' scheduler bit for bit
    end_level: tuple[float, float]  # signal and noise of the latents after the last stage, once the timeline is made
    turn: int | None  # the stage after which a walk to the noise and back turns round; None for one that only denoises
    notes: Sequence[str]  # what the user should know about its timeline; the result's warnings hold it

    def fit(self, shape: tuple[int, int, int]) -> None:
        """Before the timeline is made: the latents' channels, height and width, which the levels of some models depend on."""

    def timeline(
        self, steps: int, *, strength: float = 1.0, device: torch.device | str = "cpu", by_strength: bool = False
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


class Task(Protocol):
    """Where the loop starts, what it is conditioned on and what comes out. A task has no loop of its own."""

    name: str
    prompts: Sequence[str] | str | None
    negative_prompt: Sequence[str] | str | None
    requires: frozenset[str]  # of model and scheduler, like a guidance's

    def claims(self, model: ModelFacts) -> frozenset[str]:
        """What its own hooks claim, see `Hook.claims`."""
        ...

    def seeds(self, given: Sequence[int] | None) -> Sequence[int] | None:
        """One seed an image; the loop refuses None. Most tasks take those given; one that names its own images (the frames of
        a path) makes them."""
        ...

    def check(self, model: ModelFacts, n_images: int) -> None:
        """Raise a UserError for what cannot work with this model or number of images, before anything is computed."""
        ...

    def prepare(self, model: Model, n_images: int, *, parity: bool) -> None:
        """Once a call of the sampler, after `check` and before the first batch: read what batches share (pictures, say)."""
        ...

    def latent_shape(self, model: ModelFacts) -> tuple[int, int, int]:
        """Channels, height and width of the latents, once `prepare` has been called."""
        ...

    def solver(self, solver: Solver) -> Solver:
        """What the loop steps with: the scheduler's solver, or one wrapped around it."""
        ...

    def timeline(self, solver: Solver, steps: int, device: torch.device) -> Timeline:
        """The part of the solver's timeline that is walked."""
        ...

    def conditions(self, run: Batch) -> Mapping[str, Condition]:
        """Conditions by name ("cond", "uncond", ...), each made when it is first asked for."""
        ...

    def condition(self, run: Batch, texts: str | Sequence[str], *, negative: bool = False) -> Condition:
        """A condition like "cond" of another sentence, or of one an image of the job; ``negative``: like "uncond"."""
        ...

    def start(self, run: Batch) -> Tensor:
        """The start latents [N, C, h, w]."""
        ...

    def hooks(self, run: Batch) -> Sequence[Hook]: ...

    def finish(self, run: Run, latents: Tensor) -> list[Any]:
        """PIL images, one an image of the batch."""
        ...

    def pictures(self, images: Sequence[Any]) -> Mapping[str, Any]:
        """Further pictures of all images together by name: a PIL image, or a list of them for an animation."""
        ...


def not_inherited(cls: type, base: type, name: str) -> None:
    """Have a class that does not define a method itself take that of ``base``, whatever stands between them."""
    if name not in vars(cls):
        setattr(cls, name, getattr(base, name))


class Guidance(Recorded, Remembering):
    """How predictions are combined. This base asks for the conditional one and hands it on: no guidance.

    Attributes:
        scale: how strong it is. What is in force at a stage may be another: read ``state.scale``, or ``state.scale_of(self)`` in
            a guidance that may stand inside another.
        neutral: the scale at which it is no guidance, or None if there is none.
        scale_range: the scales that it takes.
        requires: what it needs of model and scheduler, checked against what they support before anything runs.
        keeps: what it keeps from stage to stage, by the names of its attributes; see `research.sampling.memory.Remembering`.
    """

    scale: float = 1.0
    if TYPE_CHECKING:  # a subclass may have an attribute or a property, as it likes

        @property
        def neutral(self) -> float | None: ...
        @property
        def scale_range(self) -> tuple[float, float]: ...
        @property
        def requires(self) -> frozenset[str]: ...
    else:
        neutral = 1.0
        scale_range = (-math.inf, math.inf)
        requires = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        not_inherited(cls, Guidance, "vectorises")

    @property
    def plug(self) -> Guidance:
        """The guidance whose scale it is: itself, or the one inside of a modifier."""
        return self

    def with_scale(self, scale: Scale) -> Self:
        """The same at another scale, to ask it what it needs there. It shares what it holds with this one."""
        found = copy.copy(self)
        setattr(found, "scale", scale)  # noqa: B010 - a float, as far as its own class knows
        return found

    def vectorises(self) -> bool:
        """Whether images of several scales may share a batch: `combine` then finds a tensor [N, 1, 1, 1] as the scale in force.

        At all scales at which this is true it asks for the same branches, and what it does to an image depends on that image
        alone. A subclass does not inherit it: what it changes may be another thing.
        """
        return False

    def check(self, model: ModelFacts, solver: Solver) -> None:
        """Raise a UserError for what cannot work with them. ``model`` may be what is known before weights load."""

    def start(self, run: Batch) -> None:
        """Once a run, before the first stage: reset what is kept from step to step; further models go to ``run.models``."""

    def forget(self) -> None:
        """Before a stage that does not go on from the one before (a jump back to noisier latents, the turn of an inversion): drop
        what is kept from step to step."""

    def around_model(self, run: Batch, denoiser: Denoiser) -> Denoiser:
        """What evaluates branches in this run: ``denoiser``, or one around it."""
        return denoiser

    def differentiates(self, state: StepState) -> bool:
        """Whether `combine` takes gradients here: predictions are then made with them, and ``state.x_before`` is a leaf."""
        return False

    def stands_still(self, state: StepState) -> bool:
        """Whether `combine` has the latents stand still here whatever is predicted (zero-init); who is around it adds nothing."""
        return False

    def branches(self, state: StepState) -> Sequence[Branch]:
        """The predictions needed at this stage; what is not asked for is not computed. May differ from stage to stage."""
        return [Branch("cond", state.conditions["cond"])]

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        """One guided prediction of the predictions by branch name. Leave gradients in it: one around it may need them."""
        return Guided(predictions["cond"])


class Hook(Recorded, Remembering):
    """A plug with a method for each point of the loop. Override the ones you need; the others cost nothing.

    A hook object may serve several runs: set anything it keeps from a run in ``on_start``. Noise comes from
    ``state.run.noise.draw("hook/a name of your own", ...)``, which leaves the noise of everything else as it was.

    Attributes:
        order: sorts hooks (low first; equal ones stay as given).
        requires: what it needs of model and scheduler, checked against what they support before anything runs.
        claims: what it alone may change ("composite", "timeline", ...); two hooks that claim the same are refused.
        keeps: what it keeps from stage to stage, by the names of its attributes; see `research.sampling.memory.Remembering`.
    """

    order: int = 0
    requires: frozenset[str] = frozenset()
    claims: frozenset[str] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        not_inherited(cls, Hook, "vectorises")

    def vectorises(self) -> bool:
        """Whether images of several jobs may share a batch: what it does to an image depends on that image alone, and it keeps
        nothing for the trace. A subclass does not inherit it."""
        return False

    def check(self, model: ModelFacts, solver: Solver) -> None:
        """Raise a UserError for what cannot work with them. ``model`` may be what is known before weights load."""

    def timeline(self, solver: Solver, timeline: Timeline) -> Timeline | None:
        """Before the run: return another timeline (stages walked in another ``order``) or None."""

    def around_model(self, run: Batch, denoiser: Denoiser) -> Denoiser:
        """Before the first stage: what evaluates branches in this run, ``denoiser`` or one around it."""
        return denoiser

    def on_start(self, run: Run) -> None:
        """Before the first stage. ``run.x`` holds the start latents [N, C, h, w] and may be replaced."""

    def pre_step(self, state: StepState) -> None:
        """Before each model evaluation: replace ``state.x`` to transform the latents, or ``state.conditions``."""

    def pre_model(self, state: StepState, inputs: Tensor) -> Tensor | None:
        """What the model sees, [N, C, h, w], scaled by the scheduler: return a replacement (more channels, say) or None."""

    def post_model(self, state: StepState, predictions: Mapping[str, Prediction]) -> dict[str, Prediction] | None:
        """The prediction of each branch by name: return a replacement for all of them or None."""

    def post_guidance(self, state: StepState) -> None:
        """After guidance: ``state.guided`` may be replaced."""

    def post_step(self, state: StepState) -> None:
        """After the scheduler's step: ``state.x`` is the next latents and may be replaced."""

    def on_end(self, run: Run) -> None:
        """After the last stage. ``run.x`` holds the final latents and may be replaced; ``run.trace`` goes to the result."""

    def pictures(self, images: Sequence[Any]) -> Mapping[str, Any]:
        """Once all images are made: further pictures by name, a PIL image or a list of them for an animation."""
        return {}

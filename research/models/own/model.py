"""`wrap`: any callable as a model of the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from research.checks import check_whole_number
from research.errors import ConfigError, SamplingError
from research.models.base import BaseModel
from research.models.denoiser import NetworkDenoiser
from research.models.geometry import pixel_shape
from research.models.own.levels import SCALINGS, OwnLevels, Tell, kind_of, own_levels, scaled, tell, teller
from research.models.own.network import LABELS, TEXTS, OwnNetwork, weights_hash
from research.points import Extent, point_image, points_of, scatter
from research.sampling.interfaces import Batch, Branch, Condition, Solver, TextEncoding
from research.sampling.prediction import Prediction
from research.sampling.timeline import Stage
from research.sigmas import as_schedule
from research.solvers.build import SolverFactory
from research.solvers.levels import TrainedLevels, trained_levels

Decode = Callable[[Tensor], Tensor]


def wrap(
    network: Any,
    *,
    predicts: str,
    levels: Any,
    shape: Sequence[int],
    labels: int | None = None,
    text: Any = None,
    decode: Decode | None = None,
    encode: Decode | None = None,
    told: str | Tell | None = None,
    scaling: str | None = None,
    extent: Extent = (-3.0, 3.0),
    name: str | None = None,
) -> WrappedModel:
    """A network of one's own as a model: for `LoopSampler`, and for configs by ``model._target_``.

    Args:
        network: a callable ``network(x, t, **told)``, a Module or not, that returns its prediction in the shape of ``x``. It is
            left where it is, and in its mode (call ``eval()`` where that matters). ``x`` is [B, *shape] and ``t`` [B].
        predicts: "epsilon", "x0" (what EDM calls the denoiser), "v" (arXiv:2202.00512), "flow" (noise - data), "flow_to_data"
            (data - noise), or "score" (the gradient of the log-density of ``x``, arXiv:2011.13456).
        levels: the noise levels of its training: "cosine" or "linear" (betas of 1000 timesteps), "edm" (sigma from 0.002 to 80,
            arXiv:2206.00364, visited at Karras' levels), "flow" (x = (1 - t) * data + t * noise), a `TrainedLevels`, a `Levels`
            (a grid of its own, visited as it is), or a diffusers scheduler or its config.
        shape: of one sample: (channels, height, width), or (d,) for points in d dimensions, which ``result.points`` holds.
        labels: the number of classes of a class-conditional network, which is told ``labels``, [B] whole numbers from 0; the
            label ``labels`` itself stands for no class, as classifier-free guidance asks for it.
        text: a text encoder: a callable of a list of sentences that returns embeddings [N, tokens, dim] or [N, dim], or an object
            with the methods of `TextEncoding`. The network is told ``embeds``; guidance's unconditional text is the empty one.
        decode: latents [N, *shape] to pixels [N, 3 or 1, H, W] in [-1, 1]; by default the latents are the pixels.
        encode: the way back, for tasks that start from a picture; by default the pixels themselves, where there is no ``decode``.
        told: what ``t`` is: "timestep" (from 0 to 999), "index" (the same as a whole number), "sigma" (noise over signal), "time"
            (noise's share of a flow, 1 is noise), "time_to_data" (1 - time), "log_snr" (log of signal^2 over noise^2), or a
            function of sigma. By default "timestep" for betas, "sigma" for "edm", "time" for "flow".
        scaling: of what the network sees, signal * data + noise * epsilon: "vp" (squares add to 1), "ve" (signal is 1) or "flow"
            (both add to 1). By default "vp" for betas, "ve" for "edm", "flow" for "flow".
        extent: of points: what plots show of both axes, from low to high.
        name: for tables; by default the network's.

    Raises:
        ConfigError: an argument is none of what is accepted, or the network cannot be called so.
    """
    kind = kind_of(predicts)
    if scaling is not None and scaling not in SCALINGS:
        raise ConfigError(f"scaling: found {scaling!r}; accepted: {', '.join(SCALINGS)}.")
    known = own_levels(levels, predicts, scaling)
    sides = _shape(shape)
    if labels is not None:
        check_whole_number("labels", labels, least=1)
    if len(sides) == 1 and decode is not None:
        raise ConfigError(
            f"decode: found with the shape {list(sides)}; points are drawn as they are: accepted is none."
        )
    for key, given in (("decode", decode), ("encode", encode)):
        if given is not None and not callable(given):
            raise ConfigError(f"{key}: found {given!r:.100}; accepted is a callable, latents to pixels or back.")
    words = {**({"labels": LABELS} if labels else {}), **({"embeds": TEXTS} if text is not None else {})}
    wrapped = OwnNetwork(network, words)
    return WrappedModel(
        wrapped,
        predicts=predicts,
        kind=kind,
        levels=known,
        shape=sides,
        labels=labels,
        text=None if text is None else _text_encoding(text),
        decode=decode,
        encode=encode,
        told=teller(known.told if told is None else told),
        scaling=scaling or known.scaling,
        extent=_extent(extent),
        name=name or wrapped.name,
    )


class WrappedModel(BaseModel):
    """A network of one's own; see `wrap`, which makes it. Latents in the loop are [N, C, h, w], those of points [N, d, 1, 1]."""

    family = "own"

    def __init__(
        self,
        network: OwnNetwork,
        *,
        predicts: str,
        kind: Any,
        levels: OwnLevels,
        shape: tuple[int, ...],
        labels: int | None,
        text: TextEncoding | None,
        decode: Decode | None,
        encode: Decode | None,
        told: str | Tell,
        scaling: str,
        extent: Extent,
        name: str,
    ):
        calls = [network.__dict__["call"], *(part for part in (decode, encode, text) if part is not None)]
        super().__init__(path=name, weights_sha256=weights_hash(calls), scheduler_config=levels.config)
        self.name = name
        self._network, self.levels, self.own_shape = network, levels, shape
        self.predicts, self.kind, self.told, self.scaling, self.extent = predicts, kind, told, scaling, extent
        self._text, self._decode, self._encode = text, decode, encode
        self.n_classes, self.null_class = labels, labels
        self.of_points = len(shape) == 1
        self._place = torch.device("cpu")
        offers = {"class_label", "uncond"} if labels else set()
        offers |= {"text", "uncond"} if text is not None else set()
        offers |= set() if self.of_points or decode is not None else {"pixels"}
        self.supports = frozenset(offers)

    @classmethod
    def load_parts(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        raise ConfigError("model: a wrapped network is made by research.models.wrap, and read from no directory.")

    @property
    def network(self) -> OwnNetwork:
        return self._network

    @cached_property
    def trained(self) -> TrainedLevels:
        """The noise levels that the network was trained at."""
        return self.levels.trained or trained_levels(self.scheduler_config, flow=self.levels.flow)

    @property
    def network_config(self) -> Mapping[str, Any]:
        return {}

    @property
    def text(self) -> TextEncoding:
        if self._text is None:
            raise ConfigError(f"model: {self.name} takes no text.")
        return self._text

    @property
    def device(self) -> torch.device:
        first = next(self._network.parameters(), None)
        return self._place if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self._network.parameters() if p.is_floating_point()), torch.float32)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> WrappedModel:
        self._place = torch.device(device)
        for module in self.modules():
            module.to(device=device, dtype=dtype)
        self.weak_models.to(self.device)
        return self

    def modules(self) -> list[torch.nn.Module]:
        return [self._network, *(part for part in (self._decode, self._text) if isinstance(part, torch.nn.Module))]

    def solvers(
        self, scheduler: Any, options: Mapping[str, Any] | None = None, *, parity: bool = False, sigmas: Any = None
    ) -> Callable[[], Solver]:
        """See `research.models.base.BaseModel.solvers`.

        Raises:
            ConfigError: also, parity with levels that no scheduler of diffusers has.
        """
        levels = self.levels
        if parity and levels.trained is not None:
            raise ConfigError("parity: found true; these levels are none of a diffusers scheduler: accepted is false.")
        return SolverFactory(
            scheduler,
            options,
            self.scheduler_config,
            parity=parity,
            sigmas=levels.grid if sigmas is None else as_schedule(sigmas),
            trained=levels.trained,
        )

    def denoiser(self, run: Batch) -> OwnDenoiser:
        return OwnDenoiser(self, run)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        if self.of_points:
            return pixel_shape((self.own_shape[0], 1, 1), height, width)
        channels, own_height, own_width = self.own_shape
        pixel_shape((channels, own_height * self.vae_factor, own_width * self.vae_factor), height, width)
        return channels, own_height, own_width

    @cached_property
    def vae_factor(self) -> int:
        """Pixels a latent, on a side, as ``decode`` makes them."""
        if self._decode is None:
            return 1
        with torch.no_grad():
            pixels = self.decode_pixels(torch.zeros((1, *self.own_shape), device=self.device, dtype=self.dtype))
        return max(1, pixels.shape[2] // self.own_shape[1])

    def encode(self, run: Batch, pixels: Tensor, stream: str) -> Tensor:
        """Latents [N, C, h, w] of pixels [N or 1, 3, H, W].

        Raises:
            ConfigError: there is no ``encode``, and the latents are no pixels; or it returns another shape.
        """
        if self._encode is None and "pixels" not in self.supports:
            raise ConfigError(
                f"task: starts from a picture, and {self.name} has no encode; accepted is wrap(..., encode=...)."
            )
        pixels = pixels.to(self.device, self.dtype)
        found = pixels if self._encode is None else self._encode(pixels)
        if tuple(found.shape[1:]) != self.latent_shape():
            raise ConfigError(
                f"task: the picture's latents are {list(found.shape[1:])}; accepted by {self.name} is {list(self.own_shape)}."
            )
        return found.expand(len(run.seeds), -1, -1, -1)

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Pixels [N, 3 or 1, H, W] in [-1, 1]; of other numbers of channels the first three or one.

        Raises:
            ConfigError: it is a model of points; or ``decode`` returns something else.
        """
        if self.of_points:
            raise ConfigError(f"model: {self.name} makes points, which have no pixels.")
        if self._decode is None:
            return latents[:, : 3 if latents.shape[1] >= 3 else 1]
        found = self._decode(latents)
        if (
            not isinstance(found, Tensor)
            or found.ndim != 4
            or found.shape[1] not in (1, 3)
            or len(found) != len(latents)
        ):
            told = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise SamplingError(
                f"decode: returned {told}; accepted is [{len(latents)}, 3 or 1, H, W] with values in [-1, 1]."
            )
        return found

    def decode(self, run: Batch, latents: Tensor) -> list[Image.Image]:
        """PIL images of latents [N, C, h, w]; of points, small pictures that hold their numbers."""
        if self.of_points:
            return [point_image(point, self.extent) for point in latents.flatten(1)]
        return super().decode(run, latents)

    def pictures(self, images: Sequence[Any]) -> Mapping[str, Any]:
        """Of a model of points: all of them in one scatter plot, as "points"."""
        return {"points": scatter(points_of(images), self.extent)} if self.of_points else {}


class OwnDenoiser:
    """A wrapped network for one run: latents are scaled as it knows them, it is told the level its own way, and what it says is
    turned into a kind of prediction that solvers know."""

    def __init__(self, model: WrappedModel, run: Batch):
        self.model, self._look = model, run.look
        self._flow = run.solver.kind == "flow"
        self._stage: Stage | None = None
        self._inner = NetworkDenoiser(model.network, self.evaluate, kind=model.kind, look=run.look, timings=run.timings)

    def predict(self, x: Tensor, stage: Stage, branches: Sequence[Branch]) -> dict[str, Prediction]:
        self._stage = stage
        return self._inner.predict(x, stage, branches)

    def evaluate(self, x: Tensor, t: Tensor, told: Condition) -> Tensor:
        """What the network predicts; see `NetworkDenoiser`."""
        stage, model = self._stage, self.model
        assert stage is not None
        # solvers hand latents on in the scaling of a flow, or with squares that add to 1
        _, loop_noise = scaled(stage.signal, stage.noise, "flow" if self._flow else "vp")
        _, noise = scaled(stage.signal, stage.noise, model.scaling)
        factor = noise / loop_noise if loop_noise else 1.0
        inputs = x if factor == 1.0 else x * factor
        output = model.network(
            inputs.flatten(1) if model.of_points else inputs, self._time(x, t, stage), **_told(model, told)
        )
        if model.of_points:
            output = output.reshape(x.shape)
        # of latents that are no numbers the loop itself speaks
        sound = output.isfinite().all() | ~x.isfinite().all()
        self._look(sound, lambda finite: _check_finite(bool(finite), model.network.name, stage))
        if model.predicts == "score":
            return output * -noise
        return -output if model.predicts == "flow_to_data" else output

    def _time(self, x: Tensor, t: Tensor, stage: Stage) -> Tensor:
        """What the network is told, [B]."""
        if t is stage.t:
            levels = [(stage.signal, stage.noise, stage.time)]
        else:  # a guidance tells some rows another time
            at_time = self.model.trained.at_time
            levels = [(level.signal, level.noise, level.time) for level in map(at_time, t.tolist())]
        signal, noise, time = torch.tensor(levels, dtype=torch.float64).unbind(1)
        found = tell(self.model.told, signal, noise, time)
        if found.shape != signal.shape:
            raise ConfigError(f"told: the function returned {list(found.shape)} for sigma [B]; accepted is [B].")
        dtype = x.dtype if found.is_floating_point() else found.dtype
        return found.to(x.device, dtype).expand(len(x))


def _told(model: WrappedModel, told: Condition) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if told.class_labels is not None and model.n_classes:
        found["labels"] = told.class_labels
    if told.embeds is not None:
        flat = isinstance(model._text, _Encoder) and model._text.flat
        found["embeds"] = told.embeds.squeeze(1) if flat else told.embeds
    return found


def _check_finite(finite: bool, name: str, stage: Stage) -> None:
    if not finite:
        raise SamplingError(
            f"network: {name} returned NaN or infinite numbers at stage {stage.index}, step {stage.step + 1} of {stage.n_steps} "
            f"(sigma = {stage.sigma:.4g}); accepted are finite ones."
        )


class _Encoder:
    """A callable of the user's own as a text encoder."""

    tokenizer = None
    max_tokens = 2**31

    def __init__(self, call: Callable[[list[str]], Tensor]):
        self.call, self.flat = call, False

    def encode(self, texts: Sequence[str]) -> Tensor:
        return torch.cat([self.encode_together([text]) for text in texts])

    def encode_together(self, texts: Sequence[str]) -> Tensor:
        found = self.call(list(texts))
        if not isinstance(found, Tensor) or found.ndim not in (2, 3) or len(found) != len(texts):
            told = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise SamplingError(
                f"text: returned {told} for {len(texts)} sentences; accepted is [N, tokens, dim] or [N, dim], a row each."
            )
        self.flat = found.ndim == 2
        return found[:, None] if self.flat else found

    def dropped(self, text: str) -> str | None:
        return None


def _text_encoding(text: Any) -> TextEncoding:
    if all(hasattr(text, name) for name in ("encode", "encode_together", "dropped")):
        found: TextEncoding = text
        return found
    if not callable(text):
        raise ConfigError(f"text: found {text!r:.100}; accepted is a callable, a list of sentences to embeddings.")
    return _Encoder(text)


def _shape(shape: Any) -> tuple[int, ...]:
    try:
        sides = tuple(check_whole_number("shape", side, least=1) for side in shape)
    except TypeError:
        sides = ()
    if len(sides) not in (1, 3):
        raise ConfigError(f"shape: found {shape!r}; accepted is (channels, height, width), or (d,) for points.")
    return sides


def _extent(extent: Any) -> Extent:
    try:
        low, high = map(float, extent)
    except (TypeError, ValueError):
        low = high = 0.0
    if not low < high:
        raise ConfigError(f"extent: found {extent!r}; accepted is (low, high).")
    return low, high

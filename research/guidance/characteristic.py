"""Characteristic guidance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from research.checks import check_number, check_whole_number
from research.guidance.pairs import extrapolated, guided_in
from research.sampling.interfaces import Batch, Branch, Guidance, Guided, Scale, StepState
from research.sampling.prediction import Prediction, to_epsilon

# as in the authors' code: where the regularisation of a stage starts, how fast it nears its target, and how much it weighs
_FIRST, _SPEED, _WEIGHT = 5.0, 0.4, 0.5
_LEAST = 1e-4  # what is divided by


class CharacteristicGuidance(Guidance):
    """Characteristic guidance (Zheng and Lan, arXiv:2312.07586, section 5): CFG of predictions made where the two agree.

    ``u(x + scale * d) + scale * (c(x + (scale - 1) * d) - u(x + scale * d))`` with the shift ``d`` that solves ``d = P (e_u -
    e_c) * sigma``, where ``e`` is the noise of the same two predictions and ``sigma = noise / signal``: the correction for what
    is not linear in the Fokker-Planck equation at large scales. ``d`` counts in latents of signal 1. Whatever the model predicts,
    and for latents of every scaling, it is the same. It is found by fixed-point iteration with Anderson's acceleration, image by
    image, from that of the stage before; ``P`` projects it onto the difference of the two predictions at ``x``, damped by a
    regularisation that falls with the noise. Where an image has not converged after ``iterations``, it gets CFG, as in the
    authors' code. Each iteration costs two evaluations, made until the last image of the batch has converged: the number of
    evaluations is the batch's. At latents of noise alone, of which neither prediction says anything, it is CFG.

    On purpose different from the authors' code: the regularisation is relative to the noisiest stage of the run that has a
    signal, and not to the last of the trained levels; numbers that are not finite count as not converged.

    Args:
        scale: from 1, which is no guidance and costs one evaluation a stage; made for large ones (10 to 30).
        iterations: at most, from 1.
        tolerance: root mean square of ``d``'s error, in latents, below which it is found; above 0.
        regularisation: at the first stage, from 0; a larger one converges more easily and is closer to CFG.
        reach: how long the regularisation lasts, above 0: at a signal share ``a`` of the variance it has fallen to ``(a_first /
            a) ** (1 / reach)``.
        bases: 0 to project onto the difference as a whole; from 1 channel by channel, onto as many parts of it, by size.
        reuse: of the shift of the stage before, from 0 to 1, where the search begins.
        until: the part of the user's steps that is corrected, above 0 and up to 1; CFG after it.

    Raises:
        ConfigError: a number is out of range.
    """

    scale_range = (1.0, math.inf)
    keeps = ("_shift", "_level")

    def __init__(
        self,
        scale: float = 10.0,
        iterations: int = 50,
        tolerance: float = 1e-4,
        regularisation: float = 1.0,
        reach: float = 1.0,
        bases: int = 0,
        reuse: float = 1.0,
        until: float = 1.0,
    ):
        self.scale = check_number("guidance.scale", scale, least=1)
        self.iterations = check_whole_number("guidance.iterations", iterations, least=1)
        self.tolerance = check_number("guidance.tolerance", tolerance, above=0)
        self.regularisation = check_number("guidance.regularisation", regularisation, least=0)
        self.reach = check_number("guidance.reach", reach, above=0)
        self.bases = check_whole_number("guidance.bases", bases, least=0)
        self.reuse = check_number("guidance.reuse", reuse, least=0, most=1)
        self.until = check_number("guidance.until", until, above=0, most=1)
        self.forget()

    @property
    def requires(self) -> frozenset[str]:
        return frozenset() if self.scale == 1 else frozenset({"uncond", "noise-levels"})

    def forget(self) -> None:
        self._shift: Tensor | None = None  # of the stage before, [N, C, h, w]
        self._level = 0.0  # sigma there

    def start(self, run: Batch) -> None:
        self.forget()
        shares = [_share(s.signal, s.noise) for s in run.timeline.stages if s.signal > 0]
        self._first_share = min(shares, default=1.0)

    def branches(self, state: StepState) -> Sequence[Branch]:
        names = ("cond",) if state.scale_of(self) == 1 else ("uncond", "cond")
        return [Branch(name, state.conditions[name]) for name in names]

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        if "uncond" not in predictions:
            return Guided(predictions["cond"])
        scale, stage = state.scale_of(self), state.stage
        pair = {name: predictions[name] for name in ("uncond", "cond")}
        if stage.signal > 0 and stage.noise > 0 and stage.step < self.until * stage.n_steps:
            with torch.no_grad():
                shift, found, corrected = self._search(state, pair, scale)
            if not bool(found.all()):
                state.run.warn(
                    f"guidance.iterations: {self.iterations} did not find the shift of every image at every stage, first "
                    f"at step {stage.step + 1}; CFG there. A greater guidance.regularisation makes it easier."
                )
            self._shift, self._level = shift, stage.noise / stage.signal
            # once more where a guidance around this one wants the gradient
            pair = self._at(state, shift, scale) if state.x_before.requires_grad else corrected
        else:
            self.forget()
        return guided_in(state, pair, "prediction", lambda v: extrapolated(v["uncond"], v["cond"], scale))

    def _at(self, state: StepState, shift: Tensor, scale: Scale) -> dict[str, Prediction]:
        """The two predictions, each made at its own latents."""
        return {
            name: state.predict([Branch(name, state.conditions[name])], x=latents)[name]
            for name, latents in self._latents(state, shift, scale).items()
        }

    def _latents(self, state: StepState, shift: Tensor, scale: Scale) -> dict[str, Tensor]:
        x, d = state.x_before, state.stage.signal * shift
        return {"uncond": x + (scale * d).to(x.dtype), "cond": x + ((scale - 1) * d).to(x.dtype)}

    def _search(
        self, state: StepState, here: Mapping[str, Prediction], scale: Scale
    ) -> tuple[Tensor, Tensor, dict[str, Prediction]]:
        """The shift of each image [N, C, h, w], 0 where it is not found; where it is [N]; and the predictions there."""
        stage = state.stage
        level = stage.noise / stage.signal
        x = state.x_before.detach()
        none = d = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        if self._shift is not None and self._level:
            d = self.reuse * (level / self._level) ** 2 * self._shift.to(d)
        basis = _basis(-self._pull(state, none, scale, here, level), self.bases)
        target = self.regularisation * (self._first_share / _share(stage.signal, stage.noise)) ** (1 / self.reach)
        aim = math.sqrt(target * _WEIGHT)
        root = d.new_full((len(d),), math.sqrt(max(_FIRST, self.regularisation) * _WEIGHT))  # of the regularisation
        shift, found = none, torch.zeros(len(d), dtype=torch.bool, device=d.device)
        made = dict(here)
        past = _Anderson(2 if self.bases else 1)
        for iteration in range(self.iterations):
            told = self._at(state, d, scale) if iteration or bool(d.any()) else here
            pull = self._pull(state, d, scale, told, level)
            if iteration:  # the first step is free, as in the authors' code
                pull = _projected(pull, basis, root.square() / _WEIGHT)
            point = torch.cat([d.flatten(1), root[:, None]], 1)
            error = torch.cat([(d - pull).flatten(1), _SPEED * (root - aim)[:, None]], 1)
            new = (error.square().mean(1).sqrt() < self.tolerance) & ~found
            found = found | new
            chosen = new.reshape(-1, *[1] * (d.ndim - 1))
            shift = torch.where(chosen, d, shift)
            made = {
                name: Prediction(torch.where(chosen, told[name].value, p.value), p.kind) for name, p in made.items()
            }
            if bool((found | ~torch.isfinite(error).all(1)).all()):
                break
            point, error = past.accelerated(point, error)
            point = point - error
            d, root = point[:, :-1].reshape(d.shape), point[:, -1]
        return shift, found, made

    def _pull(
        self, state: StepState, shift: Tensor, scale: Scale, told: Mapping[str, Prediction], level: float
    ) -> Tensor:
        """``(e_u - e_c) * sigma`` of predictions made at a shift, in full precision."""
        latents = self._latents(state, shift, scale)
        noise = {
            name: to_epsilon(Prediction(p.value.to(shift), p.kind), latents[name].to(shift), state.stage)
            for name, p in told.items()
        }
        return (noise["uncond"] - noise["cond"]) * level


def _share(signal: float, noise: float) -> float:
    """Of the signal in the variance; alpha bar of the papers."""
    return signal**2 / (signal**2 + noise**2)


def _basis(difference: Tensor, bases: int) -> Tensor:
    """What a shift is projected onto: unit vectors [N, C, bases, h * w] channel by channel, or [N, 1, 1, C * h * w]."""
    if not bases:
        parts = difference.reshape(len(difference), 1, 1, -1)
    else:
        flat = difference.flatten(2)[:, :, None]
        at = torch.linspace(0, 1, bases + 1, device=flat.device, dtype=flat.dtype)
        edges = torch.quantile(flat[:, :, 0], at, dim=-1).movedim(0, -1)[..., None]
        below = flat < edges[:, :, 1:]
        below[:, :, -1] = True  # the greatest is in the last part
        parts = torch.where((flat >= edges[:, :, :-1]) & below, flat, 0)
    return parts / parts.norm(dim=-1, keepdim=True).clamp_min(_LEAST)


def _projected(pull: Tensor, basis: Tensor, regularisation: Tensor) -> Tensor:
    """The part of ``pull`` [N, C, h, w] along a basis of vectors that share no place, damped image by image [N]."""
    flat = pull.reshape(len(pull), basis.shape[1], 1, -1)
    damping = basis.square().sum(-1, keepdim=True) + regularisation[:, None, None, None]
    along = (basis * flat).sum(-1, keepdim=True) / damping.clamp_min(_LEAST)
    return (basis * along).sum(2).reshape(pull.shape)


class _Anderson:
    """Anderson's acceleration of a fixed-point iteration, for each row by itself.

    Args:
        memory: how many of the last differences it looks at.
    """

    def __init__(self, memory: int):
        self.memory = memory
        self._last: tuple[Tensor, Tensor] | None = None
        self._differences: list[tuple[Tensor, Tensor]] = []

    def accelerated(self, point: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Where to go on from: the point [N, D] and its error [N, D], less what the last differences explain of the error."""
        if self._last is not None:
            self._differences = [*self._differences, (point - self._last[0], error - self._last[1])][-self.memory :]
        self._last = point, error
        if not self._differences:
            return point, error
        points, errors = (torch.stack(each, -1) for each in zip(*self._differences, strict=True))
        size = errors.norm(dim=1, keepdim=True).clamp_min(_LEAST)
        points, errors = points / size, errors / size
        wide = errors if errors.device.type == "mps" else errors.double()
        square, along = wide.mT @ wide, wide.mT @ error.to(wide)[..., None]
        good = torch.isfinite(square).all(-1).all(-1) & torch.isfinite(along).all(-1).all(-1)
        square, along = torch.where(good[:, None, None], square, 0), torch.where(good[:, None, None], along, 0)
        solved = torch.linalg.pinv(square.cpu(), hermitian=True, rtol=1e-10).to(along) @ along
        solved = solved.to(errors)
        return point - (points @ solved)[..., 0], error - (errors @ solved)[..., 0]

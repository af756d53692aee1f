"""Noise optimisation: the start noise is moved along the gradient of the score, through all steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from research.checks import check_number, check_whole_number
from research.errors import ConfigError, SamplingError
from research.guidance.gradients import GradientGuidance
from research.samplers.search import Found, Group, Search
from research.sampling import Guidance, Hook, LoopSampler, Solver
from research.sampling.memory import within


class NoiseOptimisation(Search):
    """Gradient ascent of the score in the start noise, through every step of the loop: ReNO (Eyring et al., arXiv:2406.04312),
    as DOODL does (arXiv:2303.13703), for models of few steps.

        noise <- noise + learning_rate * clip(grad [score(x(noise)) + regularise * K(noise)])

    with Nesterov momentum, the gradient of an image cut to the norm ``clip``, and ``K(n) = (d - 1) log |n| - |n|^2 / 2``, the
    log-density of the norm of ``d`` standard normal numbers (after arXiv:2306.08687), which keeps the noise a likely one.
    The best image on the way is kept. With 0 iterations it is the loop.

    An iteration evaluates the network forwards and backwards: ``gradient_evaluations`` counts the latter. Memory grows with the
    number of steps.

    Args:
        sampler, score: see `Search`. The score must have gradients: a loss, or a function of pixels or latents.
        iterations: steps of the ascent, from 0; 50 in ReNO.
        learning_rate: eta, above 0; 5 in ReNO.
        clip: the largest norm of a gradient, above 0; 0.1 in ReNO.
        momentum: from 0 to below 1; 0.9 in ReNO.
        regularise: factor of K, from 0; 0.01 in ReNO.

    Raises:
        ConfigError: a setting is out of range, the score has no gradients, or the guidance takes gradients of its own.
    """

    def __init__(
        self,
        sampler: LoopSampler | None = None,
        score: Any = None,
        iterations: int = 10,
        learning_rate: float = 5.0,
        clip: float = 0.1,
        momentum: float = 0.9,
        regularise: float = 0.01,
    ):
        super().__init__(sampler, score)
        self.iterations = check_whole_number("sampler.iterations", iterations, least=0)
        self.learning_rate = check_number("sampler.learning_rate", learning_rate, above=0)
        self.clip = check_number("sampler.clip", clip, above=0)
        self.momentum = check_number("sampler.momentum", momentum, least=0, below=1)
        self.regularise = check_number("sampler.regularise", regularise, least=0)

    @property
    def candidates(self) -> int:
        return 1

    def steps_of(self, steps: int) -> int:
        return (1 + self.iterations) * steps

    def check_loop(self, solver: Solver, guidance: Guidance, hooks: Sequence[Hook]) -> None:
        check_gradients(self, "noise_optimisation")
        if any(isinstance(each, GradientGuidance) for each in within([guidance])):
            raise ConfigError(
                "guidance: takes gradients of its own, through which noise_optimisation cannot differentiate; accepted are "
                "others."
            )

    def search(self, group: Group) -> list[Found]:
        found: list[Found] = []
        for chunk in group.chunks([(image, seed) for image, seed in enumerate(group.seeds)]):
            found += self._of_chunk(group, chunk)
        return found

    def _of_chunk(self, group: Group, chunk: list[tuple[int, int]]) -> list[Found]:
        noise: Tensor | None = None
        velocity: Tensor | None = None
        best: list[Found | None] = [None] * len(chunk)
        scores: list[list[float]] = [[] for _ in chunk]
        weights = [w for module in group.loop.model.modules() for w in module.parameters() if w.requires_grad]
        for weight in weights:  # spares what a graph keeps for their gradients
            weight.requires_grad_(False)
        try:
            for iteration in range(self.iterations + 1):
                climbs = iteration < self.iterations
                given = None if noise is None else noise.detach()
                if climbs and given is None:
                    with group.trajectory(chunk) as way:
                        if way.run.start_noise is None:
                            raise SamplingError("sampler: noise_optimisation needs a task that starts from noise.")
                        noise = given = way.run.start_noise.detach().float()
                leaf = given.clone().requires_grad_() if climbs and given is not None else given
                with group.trajectory(chunk, noise=leaf, gradients=climbs) as way:
                    with torch.set_grad_enabled(climbs):
                        for _ in group.walked(chunk, way):
                            pass
                        values = group.estimated(chunk, way.x, way, "at the end")
                    if climbs:
                        assert leaf is not None
                        noise, velocity = self._moved(leaf, values, velocity)
                    way.x = way.x.detach()
                    made = group.finished(chunk, way, gradients=climbs)
                for k, (one, score) in enumerate(zip(made, values.detach().tolist(), strict=True)):
                    before = best[k]
                    if before is None or before.score is None or score > before.score:
                        best[k] = Found(one, score, {"chosen": iteration})
                    scores[k].append(score)
        finally:
            for weight in weights:
                weight.requires_grad_(True)
        return [
            Found(each.made, each.score, {**each.trace, "scores": listed})
            for each, listed in zip(best, scores, strict=True)
            if each is not None
        ]

    def _moved(self, noise: Tensor, values: Tensor, velocity: Tensor | None) -> tuple[Tensor, Tensor]:
        if not values.requires_grad:
            raise SamplingError(
                "sampler.score: has no gradient; accepted is one computed from what it is given, not detached."
            )
        with torch.enable_grad():
            size = noise.flatten(1).norm(dim=1)
            likely = (noise[0].numel() - 1) * size.log() - size.square() / 2
            total = values.sum().to(likely.dtype) + self.regularise * likely.sum()
        (gradient,) = torch.autograd.grad(total, noise)
        norms = gradient.flatten(1).norm(dim=1)
        if not bool(torch.isfinite(norms).all()):
            raise SamplingError("sampler.score: its gradient with respect to the noise is not finite.")
        factor = (self.clip / norms.clamp(min=1e-12)).clamp(max=1.0)
        gradient = gradient * factor.reshape(-1, *[1] * (gradient.ndim - 1))
        velocity = gradient if velocity is None else self.momentum * velocity + gradient
        return (noise + self.learning_rate * (gradient + self.momentum * velocity)).detach(), velocity


def check_gradients(search: Search, name: str) -> None:
    """Refuse a score without gradients.

    Raises:
        ConfigError: it has none.
    """
    if search.score is not None and not search.score.differentiable:
        raise ConfigError(
            f"sampler.score: {search.score.name} has no gradients, which {name} follows; accepted is a loss such as "
            "{_target_: research.guidance.losses.ClipLoss}, or a function of pixels or latents."
        )

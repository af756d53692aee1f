"""Search over paths: some of the way back to noise and down again, from the best so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from research.checks import check_number, check_whole_number
from research.errors import ConfigError
from research.hooks.restart import levels, renoised
from research.samplers.search import Found, Group, Search, candidate_seed
from research.sampling import Guidance, Hook, LoopSampler, Solver
from research.sampling.noise import NoiseSource


class SearchOverPaths(Search):
    """Search over paths (Ma et al., arXiv:2501.09732): ``paths`` noises of an image are denoised to the part
    ``start`` of the steps. From there each is noised ``back`` steps by ``branches`` noises of its own, all are denoised ``back +
    forth`` steps, scored by their clean estimates, and the best ``paths`` of them go on in the same way, until the last step is
    taken. Of the finished images the best is kept.

    ``forth`` more steps are won each time, so that ``back + forth`` is the paper's ``delta_b``, and ``back`` its ``delta_f``,
    both counted in steps. The estimate that is scored is that of the last evaluation. The first path is that of the seed's own
    noise.

    Args:
        sampler, score: see `Search`. The scheduler must be one that can go back to a step: first-order ones without memory.
        paths: N in the paper, from 1.
        branches: M in the paper, from 1.
        start: the part of the steps after which paths branch for the first time, above 0 and below 1.
        back: steps that are noised again, from 1.
        forth: steps that are won each time, from 1.

    Raises:
        ConfigError: a setting is out of range; or, when it runs, ``start`` lies before ``back`` steps or after the last.
    """

    def __init__(
        self,
        sampler: LoopSampler | None = None,
        score: Any = None,
        paths: int = 2,
        branches: int = 2,
        start: float = 0.3,
        back: int = 1,
        forth: int = 2,
    ):
        super().__init__(sampler, score)
        self.paths = check_whole_number("sampler.paths", paths, least=1)
        self.branches = check_whole_number("sampler.branches", branches, least=1)
        self.start = check_number("sampler.start", start, above=0, below=1)
        self.back = check_whole_number("sampler.back", back, least=1)
        self.forth = check_whole_number("sampler.forth", forth, least=1)

    @property
    def candidates(self) -> int:
        return self.paths * self.branches

    def begins(self, stages: int) -> int:
        """After how many of the stages paths branch for the first time."""
        return min(max(round(self.start * stages), self.back), stages - 1)

    def steps_of(self, steps: int) -> int:
        place = self.begins(steps)
        total = self.paths * place
        while place < steps:
            end = min(place + self.forth, steps)
            total += self.candidates * (end - place + self.back)
            place = end
        return total

    def check_loop(self, solver: Solver, guidance: Guidance, hooks: Sequence[Hook]) -> None:
        if "revisits" not in solver.supports:
            raise ConfigError(
                f"sampler: search_over_paths goes back to earlier steps, which scheduler {solver.name} cannot; accepted are "
                "first-order ones, without parity (ddim, euler, euler_a, ddpm, flow_euler)."
            )

    def search(self, group: Group) -> list[Found]:
        first = [(image, candidate_seed(seed, k)) for image, seed in enumerate(group.seeds) for k in range(self.paths)]
        states: list[Tensor] = []  # of each path, one image's after the other's
        place = 0
        for chunk in group.chunks(first):
            with group.trajectory(chunk) as way:
                stages = len(way.stages)
                if stages <= self.back:
                    raise ConfigError(f"sampler.back: found {self.back} with {stages} steps to run; accepted is less.")
                place = self.begins(stages)
                for _ in group.walked(chunk, way):
                    if way.place == place:
                        break
                states += list(way.x.detach())
                group.end(chunk, way)
        rounds = 0
        while True:
            rounds += 1
            end = min(place + self.forth, stages)
            last = end == stages
            branches = [
                (
                    image * self.paths + path,
                    image,
                    candidate_seed(seed, 1 + path * self.branches + m, f"paths/{rounds}"),
                )
                for image, seed in enumerate(group.seeds)
                for path in range(self.paths)
                for m in range(self.branches)
            ]
            made: list[Any] = []
            values: list[float] = []
            reached: list[Tensor] = []
            for first_place in range(0, len(branches), group.size):
                part = branches[first_place : first_place + group.size]
                chunk = [(image, seed) for _, image, seed in part]
                with group.trajectory(chunk) as way:
                    at = levels(way.run.solver, way.run.timeline)
                    begin = place - self.back
                    x = torch.stack([states[path] for path, *_ in part])
                    noise = NoiseSource([seed for *_, seed in part], x.device).draw("paths", x.shape[1:], x.dtype)
                    way.go_back(begin, renoised(x, noise, at[place], at[begin]))
                    for state in group.walked(chunk, way):
                        latest = state
                        if way.place == end:
                            break
                    if last:
                        mine = group.finished(chunk, way)
                        values += group.score_of(chunk, mine, way)
                        made += mine
                    else:
                        values += group.estimated(chunk, latest.x0, way).tolist()
                        reached += list(way.x.detach())
                        group.end(chunk, way)
            scores = torch.tensor(values, dtype=torch.float64).reshape(len(group), -1)
            if last:
                break
            kept = scores.argsort(dim=1, descending=True, stable=True)[:, : self.paths]
            states = [reached[image * self.candidates + k] for image, mine in enumerate(kept.tolist()) for k in mine]
            place = end
        best = scores.argmax(dim=1).tolist()
        return [
            Found(
                made[image * self.candidates + k],
                float(scores[image, k]),
                {"scores": scores[image].tolist(), "chosen": k, "rounds": rounds},
            )
            for image, k in enumerate(best)
        ]

"""What samplers above the loop share: candidates of an image with noises of their own, how they are batched, scored, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from research.arguments import Recorded
from research.checks import check_whole_number
from research.errors import ConfigError
from research.progress_bar import told
from research.samplers.scores import Score, as_score, checked_values
from research.sampling import Guidance, Hook, LoopSampler, ModelFacts, SampleResult, Solver, Task
from research.sampling.loop import Trajectory
from research.sampling.noise import stream_seed
from research.sampling.result import Progress, gather

Candidate = tuple[int, int]  # which image of the group, and the seed of its noise


def candidate_seed(seed: int, number: int, stream: str = "candidate") -> int:
    """The seed of an image's candidate: its own for the first, and for each further one another, in [0, 2**63)."""
    return seed if number == 0 else stream_seed(seed, f"{stream}/{number}")


@dataclass
class Spent:
    """What one image has cost."""

    nfe: Counter[str] = field(default_factory=Counter)
    scores: int = 0
    decodes: int = 0
    gradients: int = 0


@dataclass
class Found:
    """What a search came to for one image: its best candidate, the score, and what is kept of the search."""

    made: SampleResult
    score: float | None
    trace: dict[str, Any]


class Group:
    """Images that are searched for together, and their candidates.

    Args:
        loop: makes candidates.
        score: scores them; None for a sampler without.
        task, seeds, steps: of the job.
        rows, places: of the group's images, as of `LoopSampler.batches`.
        size: candidates at a time.
        total: steps of all candidates of an image, for the progress.
    """

    def __init__(
        self,
        loop: LoopSampler,
        score: Score | None,
        task: Task,
        seeds: Sequence[int],
        steps: int,
        rows: tuple[int, ...],
        places: tuple[int, ...],
        size: int,
        total: int,
        progress: Progress | None = None,
    ):
        self.loop, self.score, self.task = loop, score, task
        self.all_seeds, self.steps, self.rows, self.places, self.size = seeds, steps, rows, places, size
        self.seeds = [seeds[row] for row in rows]
        self.spent = [Spent() for _ in rows]
        self.timings: Counter[str] = Counter()
        self.warnings: list[str] = []
        self._progress, self._done, self._total = progress, 0, max(total * len(rows), 1)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def prompts(self) -> list[str]:
        """One an image of the group; empty where there are none."""
        given = self.task.prompts
        return [given if isinstance(given, str) else given[row] if given else "" for row in self.rows]

    def chunks(self, candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
        """Candidates as they go through the network together."""
        for first in range(0, len(candidates), self.size):
            yield list(candidates[first : first + self.size])

    def trajectory(
        self, chunk: Sequence[Candidate], *, noise: Tensor | None = None, gradients: bool = False
    ) -> Trajectory:
        """The way of some candidates through the loop, at its beginning."""
        return self.loop.trajectory(
            self.task,
            self.all_seeds,
            self.steps,
            tuple(self.rows[image] for image, _ in chunk),
            first=self.places[0],
            noise_seeds=tuple(seed for _, seed in chunk),
            noise=noise,
            gradients=gradients,
        )

    def walked(self, chunk: Sequence[Candidate], trajectory: Trajectory) -> Iterator[Any]:
        """The states of the stages that are left, with progress told."""
        for state in trajectory:
            if state.stage.last_of_step:
                self._done += len(chunk)
                if self._progress is not None:
                    info = {"rows": self.rows, "places": self.places, "sigma": state.stage.sigma}
                    self._progress(min(self._done, self._total), self._total, info)
            yield state

    def count(self, chunk: Sequence[Candidate], trajectory: Trajectory, *, gradients: bool = False) -> None:
        """Add what the network was asked, once: when candidates are done with."""
        for image, _ in chunk:
            self.spent[image].nfe.update(trajectory.run.nfe)
            self.spent[image].gradients += sum(trajectory.run.nfe.values()) if gradients else 0

    def end(self, chunk: Sequence[Candidate], trajectory: Trajectory) -> None:
        """Count candidates whose images are not wanted, and give back what they hold."""
        self.count(chunk, trajectory)
        trajectory.close()
        self._note(trajectory.run.timings, trajectory.run.warnings)

    def finished(
        self, chunk: Sequence[Candidate], trajectory: Trajectory, *, gradients: bool = False
    ) -> list[SampleResult]:
        """The candidates' images, one result each, counted."""
        for _ in self.walked(chunk, trajectory):
            pass
        self.count(chunk, trajectory, gradients=gradients)
        made = trajectory.finish()
        self._note(made.timings, made.warnings)
        for image, _ in chunk:
            self.spent[image].decodes += 1
        return [_one(made, place) for place in range(len(chunk))]

    def _note(self, timings: Mapping[str, float], warnings: Sequence[str]) -> None:
        for name, seconds in timings.items():
            self.timings[name] += seconds  # type: ignore[assignment]  # seconds are no whole numbers
        self.warnings += [line for line in warnings if line not in self.warnings]

    # -- scores

    def score_of(self, chunk: Sequence[Candidate], made: Sequence[SampleResult], trajectory: Trajectory) -> list[float]:
        """Scores of finished candidates."""
        score = self._score
        if score.sees == "images":
            seen: Any = [image for each in made for image in each.images]
            return self._asked(chunk, seen, trajectory, "at the end").tolist()
        return self.estimated(chunk, trajectory.x, trajectory, "at the end").tolist()

    def estimated(
        self, chunk: Sequence[Candidate], x0: Tensor, trajectory: Trajectory, where: str | None = None
    ) -> Tensor:
        """Scores [N] of clean latents, or of estimates of them: with gradients where ``x0`` has them."""
        score, run = self._score, trajectory.run
        seen: Any = x0
        if score.sees != "latents":
            for image, _ in chunk:
                self.spent[image].decodes += 1
            x0 = x0.to(run.model.dtype) if not x0.requires_grad else x0
            if score.sees == "pixels":
                seen = run.model.decode_pixels(x0)
                seen = seen.expand(-1, 3, -1, -1) if seen.shape[1] == 1 else seen
            else:
                with torch.no_grad():
                    seen = run.model.decode(run, x0.detach())
        if where is None:
            where = f"at step {trajectory.stages[max(trajectory.place - 1, 0)].step + 1} of {self.steps}"
        return self._asked(chunk, seen, trajectory, where)

    @property
    def _score(self) -> Score:
        assert self.score is not None
        return self.score

    def _asked(self, chunk: Sequence[Candidate], seen: Any, trajectory: Trajectory, where: str) -> Tensor:
        score, prompts = self._score, self.prompts
        score.start(trajectory.run)
        for image, _ in chunk:
            self.spent[image].scores += 1
        if isinstance(seen, Tensor) and seen.dtype in (torch.float16, torch.bfloat16):
            seen = seen.float()
        words = [prompts[image] for image, _ in chunk]
        with torch.set_grad_enabled(isinstance(seen, Tensor) and seen.requires_grad):
            found = score.values(seen, words, trajectory.run.model.device)
        seeds = ", ".join(dict.fromkeys(str(self.seeds[image]) for image, _ in chunk))
        return checked_values(score, found, len(chunk), f"{where}, of seed {seeds}")

    # -- the result

    def of_loop(self, made: Sequence[SampleResult], wanted: Sequence[int]) -> SampleResult:
        """One result of some of the group's images, each of which was made once."""
        whole = gather([made[place] for place in wanted])
        whole.timings, whole.warnings = dict(self.timings), list(self.warnings)
        return whole

    def result(self, found: Sequence[Found]) -> SampleResult:
        """One result of the group's images: the best of each, and what all of its candidates cost."""
        parts = [replace(each.made, seeds=[seed]) for each, seed in zip(found, self.seeds, strict=True)]
        whole = gather(parts)
        whole.nfe_by_branch = {
            name: max(each.nfe[name] for each in self.spent) for name in {n: 0 for each in self.spent for n in each.nfe}
        }
        whole.nfe = max(sum(each.nfe.values()) for each in self.spent)
        whole.score_evaluations = max(each.scores for each in self.spent)
        whole.decoder_calls = max(each.decodes for each in self.spent)
        whole.gradient_evaluations = max(each.gradients for each in self.spent)
        whole.timings, whole.warnings = dict(self.timings), list(self.warnings)
        if all(each.score is not None for each in found):
            whole.scores["search_score"] = [float(each.score or 0.0) for each in found]
        first = found[0].made.trace
        whole.trace = {name: first[name] for name in ("stages",) if name in first}
        whole.trace["search"] = [{"seed": seed, **each.trace} for each, seed in zip(found, self.seeds, strict=True)]
        return whole


def _one(made: SampleResult, place: int) -> SampleResult:
    """One image of a result."""
    return replace(
        made,
        images=[made.images[place]],
        latents=made.latents[place : place + 1],
        seeds=made.seeds[place : place + 1],
        prompts=made.prompts[place : place + 1],
        scores={name: [numbers[place]] for name, numbers in made.scores.items()},
        timings={},
        truncated=made.truncated if place == 0 else [],
    )


class Search(Recorded):
    """A sampler above the loop: it makes several candidates of each image and gives the one that scores best.

    An image depends on its own seed alone. One of one's own has `search`, `candidates`, and arguments of its own.

    Args:
        sampler: the loop that makes candidates; None where only settings are to be checked.
        score: what is looked for, see `as_score`.

    Raises:
        ConfigError: see `as_score`.
    """

    key = "sampler"
    needs_score = True

    def __init__(self, sampler: LoopSampler | None = None, score: Any = None):
        self._loop = sampler
        if score is None and self.needs_score:
            raise ConfigError("sampler.score: must be given; accepted is a metric with a value an image, or a loss.")
        self.score = None if score is None else as_score(score)

    @property
    def candidates(self) -> int:
        """Candidates of an image that go through the network together."""
        raise NotImplementedError

    @property
    def images_together(self) -> int:
        """Images that must share a batch, whatever its size."""
        return 1

    def steps_of(self, steps: int) -> int:
        """Steps of all candidates of an image, for the progress and the plan."""
        raise NotImplementedError

    def search(self, group: Group) -> list[Found]:
        """The best candidate of each image of a group."""
        raise NotImplementedError

    def check_loop(self, solver: Solver, guidance: Guidance, hooks: Sequence[Hook]) -> None:
        """Raise a ConfigError for what the loop is made of that this sampler cannot work with."""

    @property
    def loop(self) -> LoopSampler:
        if self._loop is None:
            raise ConfigError(
                "sampler: has no loop to make candidates with; accepted is a LoopSampler as its first argument."
            )
        return self._loop

    @property
    def model(self) -> Any:
        return self.loop.model

    @property
    def guidance(self) -> Guidance:
        return self.loop.guidance

    def check(
        self, model: ModelFacts, task: Task, solver: Solver, guidance: Guidance, hooks: Sequence[Hook] = ()
    ) -> None:
        """Raise a UserError for what cannot work, before anything is computed. ``model`` may be what is known before weights
        load."""
        if not getattr(task, "varies", True):
            raise ConfigError(
                f"task: {task.name} makes the same of any noise, or names its noises itself; accepted with a sampler that "
                "searches are tasks that start from noise, or sampler=loop."
            )
        for hook in hooks:
            if type(hook).pictures is not Hook.pictures:
                raise ConfigError(
                    f"hooks: {type(hook).__name__} shows the images of a batch as they are sampled, and a search makes "
                    "several of each; accepted is sampler=loop, or no such hook."
                )
        self.check_loop(solver, guidance, hooks)
        if self.score is not None:
            self.score.check(model, task)

    def sample(
        self,
        task: Task,
        *,
        seeds: Sequence[int] | int | None = None,
        steps: int,
        batch_size: int | None = None,
        progress: Progress | bool | None = None,
    ) -> SampleResult:
        """Make one image a seed.

        Args:
            task, seeds, steps: as of `LoopSampler.sample`; steps are those of each candidate.
            batch_size: candidates at a time, of all images; those of one image at once by default.
            progress: as of `LoopSampler.sample`; it counts the steps of all candidates.

        Raises:
            UserError: as `LoopSampler.sample`; or a score is not finite.
        """
        if isinstance(seeds, Iterable):
            seeds = list(seeds)
        with told(progress, seeds, str(getattr(task, "name", ""))) as listener:
            parts = self.batches(task, seeds=seeds, steps=steps, batch_size=batch_size, progress=listener)
            result = gather(list(parts))
        further = [batch.pop("search", []) for batch in result.trace.get("batches", [])]
        if "search" in result.trace:
            result.trace["search"] = [*result.trace["search"], *(each for batch in further for each in batch)]
        if "batches" in result.trace and not any(result.trace["batches"]):
            del result.trace["batches"]
        result.pictures = self.pictures(task, result.images)
        return result

    def pictures(self, task: Task, images: Sequence[Any]) -> dict[str, Any]:
        """Further pictures of all images, see `LoopSampler.pictures`."""
        return self.loop.pictures(task, images)

    def batches(
        self,
        task: Task,
        *,
        seeds: Sequence[int] | int | None = None,
        steps: int,
        batch_size: int | None = None,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
        first: int = 0,
    ) -> Iterator[SampleResult]:
        """The same for a few images at a time: as many as have ``batch_size`` candidates together, at least one. See
        `LoopSampler.batches`."""
        known, steps, asked = self.loop.asked(task, seeds, steps, rows)
        self.check(self.model, task, self.loop.new_solver(), self.loop.guidance, self.loop.hooks)
        size = self.candidates if batch_size is None else check_whole_number("batch_size", batch_size, least=1)
        images = max(1, size // self.candidates)
        for start in range(first, len(asked), images):
            mine = tuple(asked[start : start + images])
            places = tuple(range(start, start + len(mine)))
            group = Group(self.loop, self.score, task, known, steps, mine, places, size, self.steps_of(steps), progress)
            with torch.no_grad():
                found = self.search(group)
            yield group.result(found)

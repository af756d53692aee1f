"""`LoopSampler` as it is used: the loop, with a progress bar, and a way to show itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from research.arguments import short
from research.progress_bar import ProgressBar, somebody_looks
from research.sampling import loop
from research.sampling.interfaces import Task
from research.sampling.result import Progress, SampleResult
from research.showing import card


class LoopSampler(loop.LoopSampler):
    """The loop with a progress bar and a way to show itself; the arguments are those of `research.sampling.loop.LoopSampler`."""

    __doc__ = loop.LoopSampler.__doc__ or __doc__  # in a notebook, what the arguments are

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
            task: what to make, for example ``TextToImage("pizza on a blue background")``.
            seeds: whole numbers from 0, or one of them for one image; an image depends on its own seed and on nobody else's. A
                task that names its own images (``Interpolation``) needs none.
            steps: the user's steps, from 1 to what the scheduler was trained with. Some schedulers evaluate the model more often.
            batch_size: images at a time; all at once by default.
            progress: by default a bar where somebody looks, in a notebook or on a terminal; False for none, True for one
                everywhere. Or a function that is called as ``progress(done, total, info)`` after each of the steps that are
                taken, jumps back and both ways of an inversion counted in.

        Raises:
            UserError: steps, seeds, prompts, pictures or sizes cannot work (before anything is computed), or latents stop
                being finite.
        """
        if progress is not None and not isinstance(progress, bool):
            return super().sample(task, seeds=seeds, steps=steps, batch_size=batch_size, progress=progress)
        if not (somebody_looks() if progress is None else progress):
            return super().sample(task, seeds=seeds, steps=steps, batch_size=batch_size)
        if isinstance(seeds, Iterable):
            seeds = list(seeds)
        shown = ProgressBar(len(seeds) if isinstance(seeds, list) else 1, str(getattr(task, "name", "")))
        try:
            return super().sample(task, seeds=seeds, steps=steps, batch_size=batch_size, progress=shown)
        finally:
            shown.close()

    def _settings(self) -> dict[str, Any]:
        solver = self._new_solver()
        return {
            "model": repr(self.model),
            "scheduler": solver.name,
            "guidance": short(self.guidance),
            "hooks": ", ".join(map(short, self.hooks)),
            "parity": "true" if self.parity else "",
        }

    def __repr__(self) -> str:
        said = [f"{key}={value}" if key != "model" else value for key, value in self._settings().items() if value]
        return f"LoopSampler({', '.join(said)})"

    def _repr_html_(self) -> str:
        return card("LoopSampler", self._settings())

"""The TensorBoard mirror: one run a job, below the folder of its sweep. Local, and read by ``tensorboard --logdir``."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

from research.checks import check_whole_number
from research.errors import ConfigError
from research.labels import is_number
from research.tracking.mirrored_run import MirroredRun, mirrored_run
from research.tracking.scrub import pixels


class TensorBoardTracker:
    """Mirrors finished jobs to TensorBoard's event files: numbers, the curve over stages, pictures, prompts, and settings with
    numbers in the tab of hyperparameters.

    Args:
        directory: where runs go, a folder each; None for ``<sweep folder>/tensorboard``.
        max_images: sample images a run.

    Raises:
        ConfigError: tensorboard is not installed, or a setting cannot be used.
    """

    def __init__(self, directory: str | None = None, max_images: int = 16) -> None:
        if directory is not None and (not isinstance(directory, str) or not directory):
            raise ConfigError(f"tracker.directory: found {directory!r}; accepted is a folder, or null.")
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError(
                "tracker: tensorboard is not installed: pip install 'diffusion-sampling-research[tensorboard]'."
            )
        self.directory = directory
        self.max_images = check_whole_number("tracker.max_images", max_images)

    def log_job(self, job_dir: Path) -> None:
        """Writes the run of a job, in the place of an earlier one."""
        from torch.utils.tensorboard import SummaryWriter

        job = Path(job_dir)
        record = mirrored_run(job, max_images=self.max_images)
        folder = Path(self.directory or job.parent / "tensorboard").expanduser() / record.run_id
        shutil.rmtree(folder, ignore_errors=True)
        writer = SummaryWriter(str(folder))
        try:
            self._write(writer, job, record)
        finally:
            writer.close()

    def close(self) -> None:
        """Nothing is left to do: each run is whole when `log_job` returns."""

    def _write(self, writer: Any, job: Path, record: MirroredRun) -> None:
        import numpy as np
        from torch.utils.tensorboard.summary import hparams

        numbers = {key: float(value) for key, value in record.summary.items() if is_number(value)}
        settings = {key: value for key, value in record.config.items() if isinstance(value, str | int | float | bool)}
        for summary in hparams({**settings, "name": record.name, "sweep": record.group}, numbers):
            writer.file_writer.add_summary(summary)
        for key, value in numbers.items():
            writer.add_scalar(key, value, 0)
        for index, point in enumerate(record.curve):
            for key, value in point.items():
                writer.add_scalar(key, value, index)
        for place, image in enumerate(record.images):
            picture = np.asarray(pixels(job / image["file"]).convert("RGB"))
            writer.add_image(f"images/{place:03d} {image['caption']}"[:200], picture, 0, dataformats="HWC")
        text = json.dumps(record.config, indent=1, ensure_ascii=False, default=str)
        writer.add_text("config", f"```\n{text}\n```", 0)
        if record.samples:
            rows = "\n".join(f"| {' | '.join(map(str, row))} |" for row in record.samples)
            head = f"| {' | '.join(record.columns)} |\n|{'---|' * len(record.columns)}"
            writer.add_text("samples", f"{head}\n{rows}", 0)

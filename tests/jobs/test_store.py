"""Folders of jobs: what counts as done, and files that are whole or not there."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from research.errors import ConfigError
from research.jobs import images
from research.jobs.record import ImageRecord, JobResult, StoreError, write
from research.jobs.store import JobFolder, make_writable


def finished_job(folder: Path) -> JobFolder:
    job = JobFolder(folder)
    job.clear()
    images.save(Image.new("RGB", (4, 4)), job.images / "00000_seed0.png", {})
    image = ImageRecord(file="images/00000_seed0.png", seed=0, prompt=None)
    job.write_result(JobResult(job_id=folder.name, status="done", images=[image], n_images=1, seeds=[0]))
    return job


def test_done_means_result_and_images(tmp_path: Path) -> None:
    job = finished_job(tmp_path / "abc")
    assert job.finished() is not None
    image = job.images / "00000_seed0.png"
    image.write_bytes(b"")
    assert job.finished() is None
    image.unlink()
    assert job.finished() is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"status": "failed", "job_id": "abc"}', '{"status": "done", "job_id": "other", "images": []}'],
)
def test_not_done(tmp_path: Path, content: str) -> None:
    job = finished_job(tmp_path / "abc")
    (job.path / "result.json").write_text(content)
    assert job.finished() is None


def test_clear_removes_what_a_killed_job_left_and_nothing_else(tmp_path: Path) -> None:
    job = finished_job(tmp_path / "abc")
    (job.path / ".result.json.x1").write_text("half")
    (job.images / ".00001_seed1.png.x2").write_text("half")
    (job.path / "notes.txt").write_text("the user's own")
    job.clear()
    left = sorted(str(p.relative_to(job.path)) for p in job.path.rglob("*"))
    assert left == ["images", "notes.txt"]


def test_results_are_strict_json(tmp_path: Path) -> None:
    import torch

    job = JobFolder(tmp_path / "abc")
    job.clear()
    info = {"inf": [math.inf], "tensor": torch.ones(2), "text": "é", "path": tmp_path}
    job.write_result(JobResult(job_id="abc", status="done", metrics={"nan": math.nan}, metrics_info={"fid": info}))

    def no_constants(name: str) -> None:
        raise AssertionError(name)

    text = (job.path / "result.json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=no_constants)
    assert found["metrics"] == {"nan": None}
    assert found["metrics_info"]["fid"] == {"inf": [None], "tensor": [1.0, 1.0], "text": "é", "path": str(tmp_path)}


def test_write_leaves_the_old_file_when_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="output_dir"):
        write(Path("/proc/nowhere/file"), b"x")
    target = tmp_path / "file"
    write(target, b"old")
    target.with_name("folder").mkdir()
    with pytest.raises(StoreError):
        write(target.with_name("folder"), b"new")
    assert target.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_unwritable_folders_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        make_writable(tmp_path / "file" / "a" / "b")
    make_writable(tmp_path / "new" / "sweep")
    assert not list((tmp_path / "new" / "sweep").iterdir())


def test_an_image_carries_its_recipe(tmp_path: Path) -> None:
    said = {"prompt": 'a "fox", été = 雪\nnext line', "seed": 7}
    path = tmp_path / "image.png"
    images.save(Image.new("RGB", (4, 4), "red"), path, said)
    assert images.recipe(path) == said


def test_many_images_are_read_back_as_they_were(tmp_path: Path) -> None:
    saved = images.SavedImages(bytes_in_memory=4 * 4 * 3)
    colours = ["red", "green", "blue"]
    for colour in colours:
        saved.add(Image.new("RGB", (4, 4), colour), tmp_path / f"{colour}.png", {})
    assert [image.tobytes() for image in saved] == [Image.new("RGB", (4, 4), c).tobytes() for c in colours]
    assert len(saved[1:]) == 2

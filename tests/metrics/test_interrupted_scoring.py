"""A scoring that is interrupted goes on from its notes; one that is quick writes none."""

from __future__ import annotations

import pytest
from support.metric_samples import pictures

from research.metrics import FID, KID, CLIPScore, feature_checkpoint, load_features
from research.metrics.reference import accumulate_reference, chosen, save_reference
from research.metrics.score import measure


@pytest.fixture
def reference(tiny_clip, tmp_path) -> str:
    path = tmp_path / "real.safetensors"
    sums = accumulate_reference(pictures(60, seed=10), load_features(tiny_clip), wanted=chosen(60, 60))
    save_reference(path, sums, {})
    return str(path)


@pytest.fixture
def batches_seen(tiny_clip, monkeypatch) -> list[int]:
    """How many images each evaluation of the network had."""
    clip = load_features(tiny_clip).clip
    seen: list[int] = []
    whole = clip.model.get_image_features

    def counted(pixel_values, **more):
        seen.append(len(pixel_values))
        return whole(pixel_values=pixel_values, **more)

    monkeypatch.setattr(clip.model, "get_image_features", counted)
    forget(tiny_clip)
    yield seen
    forget(tiny_clip)


class Images(list):
    """Images of which one is never reached the first time."""

    def __init__(self, images, stop):
        super().__init__(images)
        self.stop = stop

    def __iter__(self):
        for k, image in enumerate(super().__iter__()):
            if k == self.stop:
                self.stop = None
                raise KeyboardInterrupt
            yield image


def job(tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    return folder


def test_scoring_goes_on_where_it_was_stopped(tiny_clip, reference, tmp_path, batches_seen):
    folder, images = job(tmp_path), Images(pictures(40, seed=1), stop=27)
    metric = FID(tiny_clip, reference, batch_size=5)
    with pytest.raises(KeyboardInterrupt):
        measure(metric, images, [], device="cpu", folder=folder, last=False)
    assert sum(batches_seen) == 25
    assert (folder / ".scoring").is_dir()
    forget(tiny_clip)
    batches_seen.clear()
    result = measure(metric, images, [], device="cpu", folder=folder, last=False)
    assert sum(batches_seen) == 15
    forget(tiny_clip)
    batches_seen.clear()
    measure(KID(tiny_clip, reference, batch_size=5), images, [], device="cpu", folder=folder)
    assert sum(batches_seen) == 0
    assert not (folder / ".scoring").exists()
    forget(tiny_clip)
    assert result.values == pytest.approx(metric.compute(pictures(40, seed=1), device="cpu").values, rel=1e-6)


def forget(tiny_clip):
    """As a new process would: the images seen are forgotten, the network stays."""
    from research.metrics.extractors.base import seen_images

    seen_images.clear()


def test_notes_of_other_images_or_damaged_ones_are_not_used(tiny_clip, reference, tmp_path, batches_seen):
    folder, images = job(tmp_path), Images(pictures(40, seed=1), stop=27)
    metric = FID(tiny_clip, reference, batch_size=5)
    with pytest.raises(KeyboardInterrupt):
        measure(metric, images, [], device="cpu", folder=folder)
    forget(tiny_clip)
    batches_seen.clear()
    other = pictures(40, seed=2)
    measure(metric, other, [], device="cpu", folder=folder, last=False)
    assert sum(batches_seen) == 40
    for file in (folder / ".scoring").iterdir():
        file.write_bytes(b"rubbish")
    forget(tiny_clip)
    batches_seen.clear()
    measure(metric, other, [], device="cpu", folder=folder)
    assert sum(batches_seen) == 40


def test_long_scoring_is_noted_as_it_goes_and_short_scoring_never(
    tiny_clip, reference, tmp_path, monkeypatch, batches_seen
):
    folder, images = job(tmp_path), pictures(20, seed=3)
    measure(CLIPScore(tiny_clip), images, ["a"] * 20, device="cpu", folder=folder, last=False)
    measure(FID(tiny_clip, reference, keep_features=False), images, [], device="cpu", folder=folder, last=False)
    assert list(folder.iterdir()) == []
    forget(tiny_clip)
    monkeypatch.setattr(feature_checkpoint, "SECONDS_BETWEEN_NOTES", 0.0)

    class Killed(Exception):
        """What ends a process without a word leaves what was noted before."""

    class Dying(Images):
        def __iter__(self):
            for k, image in enumerate(list.__iter__(self)):
                if k == self.stop:
                    raise Killed
                yield image

    with pytest.raises(Killed):
        measure(FID(tiny_clip, reference, batch_size=5), Dying(images, 12), [], device="cpu", folder=folder)
    forget(tiny_clip)
    batches_seen.clear()
    measure(FID(tiny_clip, reference, batch_size=5), images, [], device="cpu", folder=folder)
    assert sum(batches_seen) == 10

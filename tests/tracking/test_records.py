"""What is logged of a job: flat settings that group, numbers, curve, table; no paths and no keys."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from support.sweep_samples import PROMPTS, write_job

from research.errors import UserError
from research.tracking.mirrored_run import flat, mirrored_run
from research.tracking.scrub import pixels, scrub, scrub_text

WORDS = st.text(string.ascii_lowercase, min_size=1, max_size=8)


def edit(job: Path, **changes) -> Path:
    file = job / "result.json"
    result = json.loads(file.read_text())
    for key, value in changes.items():
        result[key] = {**result[key], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(result))
    return job


def test_settings_are_flat_and_group():
    config = {
        "scheduler": {"name": "ddim", "options": {"eta": 0.5}},
        "guidance": {"_target_": "research.guidance.CFG", "scale": 3, "modifiers": {"interval": {"steps": [0.2, 0.8]}}},
        "hooks": {},
        "steps": 10,
    }  # fmt: skip
    assert flat(config) == {
        "scheduler": "ddim",
        "scheduler/options/eta": 0.5,
        "guidance": "CFG",
        "guidance/scale": 3,
        "guidance/modifiers/interval/steps": [0.2, 0.8],
        "steps": 10,
    }


@given(st.recursive(st.integers() | WORDS, lambda inner: st.dictionaries(WORDS, inner, max_size=3), max_leaves=12))
def test_flat_settings_have_no_nesting_and_lose_no_value(value):
    def leaves(tree):
        return sum(map(leaves, tree.values())) if isinstance(tree, dict) else 1

    found = flat({"top": value})
    assert not any(isinstance(item, dict) for item in found.values())
    assert all("." not in key for key in found)
    if "name" not in json.dumps(value):
        assert len(found) == leaves(value)


def test_a_record_says_what_was_run_and_found(tmp_path):
    job = edit(write_job(tmp_path / "my sweep", scale=3.0, steps=4, prompts=PROMPTS[:2]), git_commit="ab" * 20)
    edit(job, metrics_info={"clip_score": {"per_image": [70.5, 71.0], "model": "emoji-eval"}})
    record = mirrored_run(job, tags=["mine"], max_images=1)
    assert record.group == "my sweep"
    assert record.job_type == "text_to_image"
    assert record.tags == ["mine", "my sweep", "ddim", "CFG", "commit:ababababab"]
    assert record.config["guidance/scale"] == 3.0
    assert record.config["prompts"] == PROMPTS[:2]
    assert record.config["metrics_info/clip_score/model"] == "emoji-eval"
    assert record.summary["nfe"] == 8
    assert record.summary["seconds/image"] == pytest.approx((0.02 + record.summary["seconds/denoise"] + 0.03) / 2)
    assert [point["curve/log_snr"] for point in record.curve] == [-5, -2.75, -0.5, 1.75]
    assert [point["recorded/x0_std"] for point in record.curve] == [0.5] * 4
    assert record.columns == ["file", "seed", "prompt", "clip_score"]
    assert [row[1:] for row in record.samples] == [[0, PROMPTS[0], 70.5], [1, PROMPTS[1], 71.0]]
    assert [image["caption"] for image in record.images] == [f"{PROMPTS[0]} (seed 0)"]


def test_the_digest_is_of_the_content_and_not_of_the_place(tmp_path):
    one = write_job(tmp_path / "here" / "s", steps=3, prompts=PROMPTS[:1])
    other = write_job(tmp_path / "there" / "s", steps=3, prompts=PROMPTS[:1])
    assert mirrored_run(one).digest == mirrored_run(other).digest
    before = mirrored_run(one)
    edit(one, metrics={"fid": 1.5})
    after = mirrored_run(one)
    assert after.digest != before.digest
    assert after.media == before.media
    assert after.run_id == before.run_id


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    folders=st.lists(WORDS, min_size=2, max_size=4),
    key=st.sampled_from(["token", "api_key", "hf_token", "db_password", "AWS_SECRET", "credentials"]),
    secret=st.text(string.ascii_letters + string.digits, min_size=12, max_size=30),
)
def test_neither_paths_nor_secrets_stay_in_settings(monkeypatch, folders, key, secret):
    monkeypatch.setenv("MY_API_KEY", secret)
    folder = "/".join(["/home", *folders])
    config = {
        "model": {"path": folder, key: secret},
        "task": {"image": f"{folder}/cat.png", "mask": f"../{'/'.join(folders)}/mask.png"},
        "note": f"see {folder}/x.txt, token {secret}",
        "list": [f"{folder}/a", {"b": f"~/{folders[0]}/b.yaml"}],
    }
    text = json.dumps(scrub(config))
    assert secret not in text
    assert folder not in text
    assert f"{folders[0]}/" not in text
    assert "cat.png" in text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("owner/name", "owner/name"),
        ("https://user:pw@host.org/a/b.png?x=1", "https://host.org/a/b.png?x=1"),
        ("file:///home/me/x.png", "x.png"),
        ("key hf_abcdefghijklmnopqrst1 end", "key [hidden] end"),
        (r"C:\Users\me\model.ckpt", "model.ckpt"),
        ("a road with/without end, 1/2", "a road with/without end, 1/2"),
        ("models/mine/unet.safetensors", "unet.safetensors"),
    ],
)
def test_texts_are_cut_where_they_should_be(text, left):
    assert scrub_text(text) == left


def test_an_image_goes_without_what_its_file_says(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("recipe", "/home/someone/models/sd15")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png", pnginfo=info)
    pixels(tmp_path / "a.png").save(tmp_path / "b.png")
    assert b"someone" not in (tmp_path / "b.png").read_bytes()
    assert pixels(tmp_path / "b.png").tobytes() == pixels(tmp_path / "a.png").tobytes()


@pytest.mark.parametrize(
    ("content", "said"), [("{", "cannot be used"), ("[]", "Expected `object`"), (None, "found no such file")]
)
def test_a_damaged_job_is_one_clear_line(tmp_path, content, said):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match=said) as raised:
        mirrored_run(tmp_path)
    assert "\n" not in str(raised.value)

"""Records on disk: those of version 0.1.0 are read, what is written is read back, and what is damaged is named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from research.jobs import record
from research.jobs.record import DamagedRecord, JobResult, MadeSoFar, NoRecord, Trace

OLD = Path(__file__).parents[1] / "data" / "sweeps_0_1" / "old"


def test_records_of_version_0_1_are_read() -> None:
    found = {f.parent.name: record.read_result(f.parent) for f in OLD.glob("*/result.json")}
    assert {name: result.status for name, result in found.items()} == {
        "0e4a46186852": "done",
        "437fe69cd3dc": "failed",
        "6159bc76eb42": "done",
        "df1390b34fef": "done",
        "fc1ed800e861": "done",
    }
    one = found["6159bc76eb42"]
    assert one.settings is not None
    assert (one.settings.steps, one.settings.scheduler.name, one.settings.runtime.threads) == (3, "ddim", 1)
    assert (one.nfe, one.seeds, [image.seed for image in one.images]) == (3, [0, 1], [0, 1])
    rescored = found["0e4a46186852"].scored
    assert rescored is not None
    assert rescored.copied_from == "df1390b34fef"
    assert found["437fe69cd3dc"].error_line.startswith("ValueError: broken on purpose; raised in hook")
    trace = record.read_trace(OLD / "fc1ed800e861")
    assert [stage.step for stage in trace.stages] == [2, 3]  # strength 0.6
    assert "record" in trace.recorded
    left = record.read_checkpoint(OLD / "e538a688c3cc" / record.PARTIAL)
    assert (len(left.images), left.nfe, left.nfe_by_branch) == (3, 80, {"uncond": 40, "cond": 40})
    assert record.read_sweep_record(OLD).jobs == ["e538a688c3cc"]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    result = record.read_result(OLD / "fc1ed800e861")
    record.write_result(tmp_path, result)
    assert record.read_result(tmp_path) == result
    trace = record.read_trace(OLD / "fc1ed800e861")
    record.write_trace(tmp_path, trace)
    assert record.read_trace(tmp_path) == trace
    left = record.read_checkpoint(OLD / "e538a688c3cc" / record.PARTIAL)
    record.write_checkpoint(tmp_path / "note", left)
    assert record.read_checkpoint(tmp_path / "note") == left


def test_numbers_that_are_none_and_halves_of_characters_are_written_so_that_they_can_be_read(tmp_path: Path) -> None:
    result = JobResult(
        job_id="a", status="done", metrics={"fid": math.nan, "kid": math.inf}, warnings=["\udcff, \U0001f355"]
    )
    result.metrics_info["fid"] = {"per_image": torch.tensor([1.0, 2.0])}
    record.write_result(tmp_path, result)
    found = record.read_result(tmp_path)
    assert found.metrics == {"fid": None, "kid": None}
    assert found.metrics_info["fid"]["per_image"] == [1.0, 2.0]
    assert found.warnings == ["\\udcff, \U0001f355"]


def damaged(change: Any) -> str:
    content = json.loads((OLD / "fc1ed800e861" / "result.json").read_text(encoding="utf-8"))
    change(content)
    return json.dumps(content)


def put(key: str, value: Any) -> Any:
    return lambda content: content.update({key: value})


BROKEN = {
    "another type": (damaged(put("nfe", "four")), "Expected `int | null`, got `str` - at `the record.nfe`"),
    "a list for an object": ("[1, 2]", "Expected `object`, got `array`"),
    "a status of its own": (damaged(put("status", "fine")), "Invalid enum value 'fine'"),
    "a key that is missing": (damaged(lambda content: content.pop("job_id")), "missing required field `job_id`"),
    "nested without end": ('{"a":' * 100_000 + "1" + "}" * 100_000, "is nested too deeply"),
    "a number of 400 digits": (damaged(put("metrics", {"fid": 10**400})), "a number of 401 digits"),
    "the same in a config": (damaged(lambda content: content["config"].update(steps=10**400)), "a number of 401 digits"),
    "NaN": (damaged(put("metrics", {"fid": math.nan})), "JSON is malformed"),
    "half a character": (damaged(put("job_id", "\ud800")), "surrogate"),
    "a path that leaves the folder": (damaged(put("pictures", {"a": "../../secret.png"})), "'../../secret.png'"),
    "an absolute path": (
        damaged(lambda content: content["images"][0].update(file="/etc/passwd")), "names the file '/etc/passwd'",
    ),
    "a later format": (damaged(put("format", 99)), "format is 99; accepted are formats up to 1"),
    "images that are not listed": (damaged(put("n_images", 5)), "n_images is 5, and 1 are listed"),
    "half a file": ('{"job_id": "a", "sta', "truncated"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "said"), BROKEN.values(), ids=BROKEN)
def test_a_damaged_record_names_its_file_and_the_field(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(DamagedRecord) as raised:
        record.read_result(tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'result.json'}: ")
    assert said in message
    assert "\n" not in message
    assert record.find_result(tmp_path) is None


def test_a_folder_without_a_record_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(NoRecord, match="no such file"):
        record.read_result(tmp_path)
    (tmp_path / "result.json").mkdir()
    with pytest.raises(DamagedRecord, match="is a folder"):
        record.read_result(tmp_path)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=10,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_no_content_gives_anything_but_a_record_or_its_damage(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name, read in (
        (record.RESULT, record.read_result),
        (record.TRACE, record.read_trace),
        (record.SWEEP, record.read_sweep_record),
    ):
        (folder / name).write_bytes(content)
        try:
            read(folder)  # type: ignore[operator]
        except DamagedRecord as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_batches_add_up() -> None:
    whole = MadeSoFar(warnings=["a"])
    whole.add(MadeSoFar(nfe=4, nfe_by_branch={"cond": 4}, warnings=["a", "b"], together=["x"]))
    whole.add(MadeSoFar(nfe=2, nfe_by_branch={"cond": 2, "uncond": 1}, together=["x", "y"]))
    assert (whole.nfe, whole.nfe_by_branch) == (4, {"cond": 4, "uncond": 1})
    assert (whole.warnings, whole.together) == (["a", "b"], ["x", "y"])
    trace = Trace()
    trace.add_batch(Trace.of({"stages": [], "timings": {"denoise": 1.0}, "record": [1]}))
    trace.add_batch(Trace.of({"stages": [], "timings": {"denoise": 2.0}, "record": [2]}))
    assert trace.content() == {
        "stages": [],
        "timings": {"denoise": 1.0},
        "batches": [{"timings": {"denoise": 2.0}, "record": [2]}],
        "warnings": [],
        "record": [1],
    }

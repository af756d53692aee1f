"""``research show`` and ``research doctor``, and completion in the shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from research.cli import run

SMALL = ["tracker=none", "metrics=none", "runtime.threads=1", "steps=1"]


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    words = [
        "prompts=[fox,'a very long prompt about nothing at all that goes on and on until it has to be wrapped somewhere']"
    ]
    assert run(["-m", *SMALL, *words, "guidance.scale=1,3", "guidance/modifiers=interval"]) == 0
    return sorted(file.parent for file in Path("outputs/default").glob("*/result.json"))


def test_a_job_by_its_folder_its_picture_and_its_id(jobs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    said = []
    for word in (jobs[0], jobs[0] / "result.json", next((jobs[0] / "images").iterdir()), jobs[0].name[:8]):
        assert run(["show", str(word)]) == 0
        said.append(capsys.readouterr().out)
    assert len(set(said)) == 1
    assert f"job {jobs[0].name}  done" in said[0]
    assert "CFG(scale=" in said[0]
    assert "in Interval(steps=[0.2, 0.8])" in said[0]
    assert max(len(line) for line in said[0].splitlines()) <= 100
    assert f"once more: research again {jobs[0]}" in said[0]
    assert run(["show", "outputs/default"]) == 0
    text = capsys.readouterr().out
    assert all(job.name[:10] in text for job in jobs)
    assert run(["show", str(jobs[0]), "--config", "--images", "1"]) == 0
    text = capsys.readouterr().out
    assert "... and 1 more" in text
    assert "_target_: research.guidance.CFG" in text

    record = json.loads((jobs[1] / "result.json").read_text())
    record |= {"status": "failed", "error": "KeyError: 'x'; raised in hook Mine.post_step\nat step 2"}
    (jobs[1] / "result.json").write_text(json.dumps(record))
    assert run(["show", str(jobs[1])]) == 1
    assert "KeyError: 'x'; raised in hook Mine.post_step" in capsys.readouterr().out

    for word, why in (
        ("nowhere", "found neither a folder nor a job of that id"),
        ("outputs", "found no result.json there"),
        ("0123456789abcdef", "found neither"),
    ):
        assert run(["show", word]) == 2
        assert why in capsys.readouterr().err
    (jobs[0] / "result.json").write_text("{")
    assert run(["show", str(jobs[0])]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_doctor_says_what_there_is_and_asks_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import socket

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("asked a network"))
    assert run(["doctor", "--json"]) in (0, 1)
    found = json.loads(capsys.readouterr().out)
    assert found["facts"]["versions"]["torch"]
    assert "emoji" in found["facts"]["models"]["embedded"]
    assert found["facts"]["models"]["hub"].startswith("not asked")
    assert found["facts"]["device"]["auto"].endswith(("cpu", "cuda", "mps"))
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr(
        "research.doctor_cli._requirements", lambda: ({"torch": ">=99", "not-there": ">=1"}, {"lora": ["x-y"]})
    )
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("file").touch()
    assert run(["doctor", "--output-dir", "file/outputs"]) == 1
    text = capsys.readouterr().out
    assert "not-there>=1 is not installed" in text
    assert "accepted is >=99" in text
    assert "torch takes 64 threads" in text
    assert "HF_HUB_OFFLINE is set" in text
    assert "output_dir: file/outputs cannot be written" in text
    assert "lora" in text


def test_the_hub_is_asked_where_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert run(["doctor", "--hub"]) == 1
    assert "http://127.0.0.1:9 cannot be reached" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("research sched", "scheduler="),
        ("research scheduler=dpmpp_3", "scheduler=dpmpp_3m"),
        ("research guidance.sc", "guidance.scale="),
    ],
)
def test_completion_of_groups_choices_and_keys(
    line: str, offers: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert run(["-sc", "query=bash"]) == 0
    assert offers in capsys.readouterr().out

"""`research-schedule`: the numbers it shows, the files it writes, and the one line for what it cannot use."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from PIL import Image
from support.tiny_models import save_tiny_pixel

from research.schedule.cli import run

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}


@pytest.fixture
def flow_model(tmp_path: Path) -> Path:
    folder = tmp_path / "flow"
    folder.mkdir()
    (folder / "scheduler_config.json").write_text(json.dumps(FLOW))
    return folder


def as_json(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> list[dict]:
    assert run([*argv, "--json"]) == code, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)["schedulers"]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert run(list(argv)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("research-schedule: ")
    return err


def test_points_are_those_of_diffusers(capsys):
    ddim, euler = as_json(capsys, "scheduler=ddim,euler", "steps=7")
    emoji = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    first, second = DDIMScheduler(**emoji), EulerDiscreteScheduler(**emoji, timestep_spacing="leading")
    first.set_timesteps(7)
    second.set_timesteps(7)
    assert [p["t"] for p in ddim["points"]] == first.timesteps.tolist()
    for point, t in zip(ddim["points"], first.timesteps, strict=True):
        assert point["alphas_cumprod"] == pytest.approx(float(first.alphas_cumprod[t]), rel=1e-5)
    for point, sigma in zip(euler["points"], second.sigmas, strict=False):
        assert point["sigma"] == pytest.approx(float(sigma), rel=1e-5)
        assert point["log_snr"] == pytest.approx(-2 * math.log(sigma), abs=1e-4)
        assert point["alphas_cumprod"] == pytest.approx(1 / (1 + float(sigma) ** 2), rel=1e-4)


def test_second_order_steps_have_two_stages(capsys):
    (heun,) = as_json(capsys, "scheduler=heun", "steps=4")
    assert [(p["step"], p["stage"]) for p in heun["points"]] == [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5), (3, 6)]


def test_strength_marks_the_slice(capsys):
    (sliced,) = as_json(capsys, "scheduler=ddim", "steps=10", "strength=0.3")
    assert [p["run"] for p in sliced["points"]] == [False] * 7 + [True] * 3
    run(["scheduler=ddim", "steps=10", "strength=0.3"])
    assert capsys.readouterr().out.count("left out by strength=0.3") == 7


def test_values_with_commas_make_a_product(capsys):
    found = as_json(capsys, "scheduler=ddim,pndm", "steps=5,9", "scheduler.options.timestep_spacing=leading,trailing")
    assert [(one["scheduler"], one["steps"], one["options"]["timestep_spacing"]) for one in found] == [
        (name, steps, spacing) for name in ("ddim", "pndm") for steps in (5, 9) for spacing in ("leading", "trailing")
    ]
    assert len({one["label"] for one in found}) == 8
    assert as_json(capsys, "scheduler=[ddim,pndm]", "steps=5")[1]["scheduler"] == "pndm"


def test_class_names_and_unknown_levels(capsys):
    tcd, ipndm = as_json(capsys, "scheduler=TCDScheduler,IPNDMScheduler", "steps=4")
    assert tcd["class_name"] == "TCDScheduler"
    assert len(ipndm["points"]) == 4
    assert all(p["sigma"] is None for p in ipndm["points"])
    assert "levels-unknown" in {f["rule"] for f in ipndm["findings"]}
    assert run(["scheduler=IPNDMScheduler", "steps=4"]) == 0
    assert " -  " in capsys.readouterr().out


def test_flow_schedulers(flow_model, capsys):
    for name in ("flow_euler", "flow_heun"):
        (own,) = as_json(capsys, f"scheduler={name}", f"model={flow_model}", "steps=5")
        assert own["findings"] == []
        for point in own["points"]:
            assert point["sigma"] == pytest.approx(point["t"] / 1000, abs=1e-3)
    # beside a model of another kind it can be looked at, and the linter says that it cannot be used
    (other,) = as_json(capsys, "scheduler=flow_euler", "steps=5")
    assert "no flow model" in other["remark"]
    assert other["findings"][0]["level"] == "error"
    assert run(["--lint", "scheduler=flow_euler", "steps=5"]) == 1


def test_the_model_decides_the_levels(tmp_path, capsys):
    directory = save_tiny_pixel(tmp_path / "pixels")
    (own,) = as_json(capsys, "scheduler=ddim", f"model={directory}", "steps=2")
    config = json.loads((directory / "scheduler/scheduler_config.json").read_text())
    alphas = DDIMScheduler.from_config(config).alphas_cumprod
    assert own["points"][0]["alphas_cumprod"] == pytest.approx(float(alphas[int(own["points"][0]["t"])]), rel=1e-5)


def test_lint_alone(capsys):
    assert (
        run(["--lint", "scheduler=ddim", "scheduler.options.timestep_spacing=linspace", "steps=20", "parity=true"]) == 0
    )
    out = capsys.readouterr().out
    assert out.startswith("warning [level-missed] ddim: ")
    assert "alphas_cumprod" not in out.split("\n")[0]
    assert run(["--lint", "scheduler=IPNDMScheduler", "steps=20"]) == 1
    assert "error [prediction-type-ignored]" in capsys.readouterr().out
    assert run(["--lint", "scheduler=dpmpp_2m", "steps=20"]) == 0
    assert capsys.readouterr().out == "lint: nothing to say\n"


@pytest.mark.parametrize(
    "names", ["ddim", "ddim,euler,dpmpp_2m_karras", "ddim,ddpm,euler,heun,dpm2,unipc,lms,flow_heun"]
)
@pytest.mark.spread(1)
def test_figure_and_csv(tmp_path, names, capsys):
    png, table = tmp_path / "new" / "out.png", tmp_path / "out.csv"
    assert run([f"scheduler={names}", "steps=6", "strength=0.5", "--png", str(png), "--csv", str(table)]) == 0
    with Image.open(png) as image:
        assert image.width >= 1000
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20
    rows = list(csv.DictReader(table.open()))
    assert list(dict.fromkeys(row["scheduler"] for row in rows)) == names.split(",")
    assert {row["run"] for row in rows} == {"true", "false"}
    assert capsys.readouterr().err.splitlines() == [f"written: {table}", f"written: {png}"]


@pytest.mark.slow
def test_the_same_command_draws_the_same_bytes(tmp_path, capsys):
    for name in ("a", "b"):
        assert run(["scheduler=ddim,euler", "steps=6", "--png", str(tmp_path / name)]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# -- the course


def test_input_scale_moves_log_snr_by_twice_its_logarithm(tmp_path, capsys):
    table = tmp_path / "course.csv"
    assert run(["--course", "beta_schedule=linear", "input_scale=1,0.5", "--csv", str(table)]) == 0
    rows = list(csv.DictReader(table.open()))
    whole, half = ([float(r["log_snr"]) for r in rows if r["input_scale"] == scale] for scale in ("1", "0.5"))
    assert len(whole) == 1000
    for one, other in zip(whole, half, strict=True):
        assert other - one == pytest.approx(2 * math.log(0.5), abs=1e-6)


def test_beta_schedules_are_those_of_diffusers(tmp_path, capsys):
    table = tmp_path / "course.csv"
    assert run(["--course", "beta_schedule=linear,squaredcos_cap_v2", "beta_end=0.02,0.004", "--csv", str(table)]) == 0
    rows = list(csv.DictReader(table.open()))
    # no beta_end changes the cosine schedule, so it stands there once
    assert list(dict.fromkeys(r["label"] for r in rows)) == [
        "linear, beta_end=0.02",
        "linear, beta_end=0.004",
        "cosine",
    ]
    for label, settings in (
        ("linear, beta_end=0.004", {"beta_end": 0.004}),
        ("cosine", {"beta_schedule": "squaredcos_cap_v2"}),
    ):
        expected = DDIMScheduler(**settings).alphas_cumprod
        found = torch.tensor([float(r["alphas_cumprod"]) for r in rows if r["label"] == label])
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_a_picture_is_noised(tmp_path, capsys):
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "red.png")
    plain, noised = tmp_path / "plain.png", tmp_path / "noised.png"
    assert run(["--course", "--png", str(plain)]) == 0
    assert run(["--course", "--image", str(tmp_path / "red.png"), "--png", str(noised)]) == 0
    with Image.open(plain) as one, Image.open(noised) as other:
        assert other.height > one.height


# -- bad input


@pytest.mark.spread(16)
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["scheduler=nope"], ["nope", "Accepted"]),
        (["scheduler=ddim", "scheduler.options.nope=1"], ["nope", "ddim"]),
        (["schedulr=ddim"], ["schedulr", "Did you mean 'scheduler'"]),
        (["ddim"], ["'ddim'", "key=value"]),
        (["steps=0"], ["steps", "0"]),
        (["steps=2.5"], ["steps", "2.5"]),
        (["steps=two"], ["steps", "two"]),
        (["steps=1001"], ["1001", "1000"]),
        (["steps="], ["steps"]),
        (["strength=1.5"], ["strength", "1.5"]),
        (["strength=nan"], ["strength", "nan"]),
        (["model=nowhere"], ["nowhere"]),
        (["model=nobody/not-in-the-cache"], ["nobody/not-in-the-cache", "cache"]),
        (["model=emoji,emoji-pixel"], ["model", "2 values"]),
        (["parity=maybe"], ["parity", "maybe"]),
        (["--png"], ["--png"]),
        (["--nope"], ["--nope"]),
        (["--lint", "--png", "x.png"], ["--lint"]),
        (["--image", "x.png"], ["--course"]),
        (["scheduler=DDPMPipeline"], ["DDPMPipeline"]),
        (["--course", "beta_schedule=nope"], ["nope"]),
        (["--course", "beta_end=2"], ["beta_end", "2"]),
        (["--course", "input_scale=0"], ["input_scale"]),
        (["--course", "scheduler=ddim"], ["scheduler", "beta_schedule"]),
        (["--course", "--image", "missing.png", "--png", "x.png"], ["missing.png"]),
        (["scheduler=ddim", "--png", "/proc/no/out.png"], ["/proc/no", "written"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input_is_one_line(argv, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, *argv)
    for word in words:
        assert word in line
    assert not list(tmp_path.iterdir())


def test_help_needs_no_torch():
    code = (
        "import sys; from research.schedule.cli import run; code = run(['--help'])\n"
        "assert not {'torch', 'diffusers', 'matplotlib'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "scheduler=ddim,euler,dpmpp_2m_karras" in done.stdout


def test_grids_of_noise_levels_side_by_side(capsys) -> None:
    series = as_json(capsys, "scheduler=euler", "sigmas=model,karras,[14.6,6.5,1,0]", "steps=3")
    assert [one["label"] for one in series] == ["euler, model", "euler, karras", "euler, sigmas 14.6, 6.5, 1, 0"]
    firsts = [[point["sigma"] for point in one["points"]] for one in series]
    assert firsts[1][0] == pytest.approx(14.6146, rel=1e-4)
    assert firsts[2] == pytest.approx([14.6, 6.5, 1.0], rel=1e-6)
    assert run(["sigmas=karras", "sigmas.rho=3,7", "steps=3"]) == 0
    assert "rho 3" in capsys.readouterr().out
    assert run(["sigmas=flow_shift"]) == 2
    assert "this model predicts noise" in capsys.readouterr().err
    assert run(["sigmas=karas"]) == 2
    assert "Did you mean 'karras'?" in capsys.readouterr().err

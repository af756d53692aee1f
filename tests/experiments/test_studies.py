"""The studies: their pages hold what they promise, their short forms run, and their arithmetic is right."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from research.metrics.frechet import Gaussian, distance_of_features

ROOT = Path(__file__).parents[2]
STUDIES = {  # the name, and its folder
    "seeds": "seeds",
    "strength": "img2img_strength",
    "inpainting": "inpaint",
    "few_steps": "few_steps",
    "solver_race": "solver_race",
    "guidance_scale": "guidance_scale",
}
LARGEST = {".png": 300_000, ".csv": 200_000, ".json": 200_000, ".md": 200_000}


def readme(study: str) -> str:
    return (ROOT / "experiments" / STUDIES[study] / "README.md").read_text(encoding="utf-8")


def commands(study: str) -> list[list[str]]:
    """The indented commands of a study's page, continued lines joined, comments left out."""
    lines = readme(study).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("    ")]
    return [words for words in found if words and words[0] in ("research", "python")]


def run(words: list[str], folder: Path) -> None:
    start = ["-m", "research"] if words[0] == "research" else []
    # one thread: two of them wait for each other when the machine has other work
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *start, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("study", STUDIES)
def test_a_page_has_all_that_a_reader_wants(study: str) -> None:
    page, folder = readme(study), ROOT / "experiments" / STUDIES[study]
    for part in ("**Question.**", "**Config.**", "**Command.**", "**Found", "**How to read it.**", "On a GPU"):
        assert part in page
    named = re.findall(r"\]\(([^)#]+)\)", page)
    assert any(name.endswith(".png") for name in named)
    for name in named:
        assert (folder / name).is_file(), name
    for file in folder.iterdir():
        assert file.stat().st_size < LARGEST.get(file.suffix, 100_000), file
    choices = {file.stem for file in (ROOT / "conf/experiment").glob("*.yaml")}
    asked = set(re.findall(r"\bexperiment=(\w+)", page))
    assert asked <= choices


@pytest.mark.parametrize("study", [name for name in STUDIES if name != "seeds"])
def test_a_results_file_holds_numbers_with_intervals(study: str) -> None:
    with (ROOT / "experiments" / STUDIES[study] / "study_results.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) >= 10
    for line in lines:
        for name in (name for name in line if name.endswith(("_low", " low")) and line[name]):
            ends = float(line[name]), float(line[name[:-3] + "high"])
            assert ends[0] <= ends[1]
        assert int(line["images"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_the_short_form_runs(study: str, tmp_path: Path) -> None:
    short = [words for words in commands(study) if any("_short" in word for word in words)]
    assert len(short) >= 2  # what draws, and what analyses
    for words in short:
        run(words, tmp_path)
    (made,) = tmp_path.rglob("study.png")
    with Image.open(made) as picture:
        assert picture.width > 600
    assert made.stat().st_size < LARGEST[".png"]
    assert "|---|" in made.with_name("study.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_methods_are_tuned_and_judged_alike(tmp_path: Path) -> None:
    """The study of guidance in short, over a method of each kind; a run that was stopped goes on where it was."""
    methods = "no guidance|CFG|CFG, interval|APG|PAG|CADS"
    common = ["--short", "--models", "emoji", "--methods", methods, "--output", str(tmp_path)]
    for more in (["--stages", "tune_1"], []):
        run(["python", "-m", "experiments.guidance.run", *common, *more], ROOT)
    run(["python", "-m", "experiments.guidance.analyse", *common, "--out", str(tmp_path / "out")], ROOT)
    with (tmp_path / "out" / "study_results.csv").open(encoding="utf-8") as file:
        lines = {line["method"]: line for line in csv.DictReader(file)}
    assert {*lines} == {*methods.split("|")}
    assert all(abs(float(line["nfe"]) - 12) <= 1 for line in lines.values()), "at equal compute"
    assert (lines["CFG"]["fid_less_cfg"], lines["CADS"]["solver_error"]) == ("", "")
    assert float(lines["CFG"]["effective_scale"]) == pytest.approx(float(lines["CFG"]["setting"].split()[1]), rel=1e-3)
    assert 0 < float(lines["APG"]["beside_cfg"]) < 1
    for line in lines.values():
        if line["fid_less_cfg"]:
            assert float(line["fid_less_cfg_low"]) <= float(line["fid_less_cfg_high"])
    with Image.open(tmp_path / "out" / "study.png") as picture:
        assert picture.width > 600


def test_what_is_called_equal_on_the_page_of_seeds_is_equal() -> None:
    told = json.loads((ROOT / "experiments/seeds/results.json").read_text(encoding="utf-8"))
    equal = {}
    for row in told["rows"]:
        equal.setdefault(row["variation"], []).append(row["equal_latents"] == row["n"])
    always = {name for name, found in equal.items() if all(found)}
    assert always >= {"the same again", "seeds in reverse", "other seeds in the batch", "another process"}
    assert not {"float16", "bfloat16", "batches of 1"} & always


# --- what the analyses compute with


@pytest.fixture(scope="module")
def common():
    sys.path.insert(0, str(ROOT))
    from experiments import common

    return common


def test_a_unit_counts_once_however_many_images_it_has(common) -> None:
    few = {("a", 0): 1.0, ("b", 0): 3.0, ("c", 0): 8.0}
    many = {(name, seed): value for (name, _), value in few.items() for seed in range(50)}
    assert common.mean(many) == common.mean(few)
    assert common.mean(few).n == 3
    assert common.mean(few).value == 4


def test_differences_are_paired(common) -> None:
    random = np.random.default_rng(0)
    hard = random.normal(0, 10, 30)  # what makes a prompt hard is the same for both
    a = {(k, 0): float(value) for k, value in enumerate(hard)}
    b = {(k, 0): float(value + gap) for k, (value, gap) in enumerate(zip(hard, random.normal(1, 0.1, 30), strict=True))}
    assert not common.mean(a).low > common.mean(b).high
    found = common.difference(b, a)
    assert found.told_apart
    assert found.value == pytest.approx(1, abs=0.1)
    assert common.difference(a, b).value == pytest.approx(-found.value)
    b[99, 0] = 1e6  # an image that only one of them has
    assert common.difference(b, a) == found


@pytest.mark.parametrize("n", [8, 40])
def test_intervals_cover_the_truth(common, n: int) -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        found = common.mean(dict(zip([(k, 0) for k in range(n)], random.normal(5, 2, n), strict=True)))
        covered += found.low <= 5 <= found.high
    assert 88 <= covered <= 100


def test_the_jackknife_of_a_mean_is_its_t_interval(common) -> None:
    values = np.random.default_rng(2).normal(0, 1, 12)
    without = np.array([np.delete(values, k).mean() for k in range(12)])
    found = common.SetScore(float(values.mean()), without).estimate
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert common.SetScore(1.0, without).less(common.SetScore(0.5, without - 0.5)).value == pytest.approx(0.5)


def test_an_fid_of_several_images_a_prompt_leaves_out_prompts(common, monkeypatch) -> None:
    from types import SimpleNamespace

    random = np.random.default_rng(3)
    vectors = {(f"prompt {k // 3}", k % 3): random.normal(0, 1, 4) for k in range(30)}
    gaussian = SimpleNamespace(mean=torch.zeros(4).double(), covariance=torch.eye(4).double())
    monkeypatch.setattr("research.metrics.FID.load", lambda self, device: (None, SimpleNamespace(gaussian=gaussian)))
    row = SimpleNamespace(result=SimpleNamespace(config={"metrics": {"fid": {"_target_": "research.metrics.FID"}}}))
    found = common.fid(vectors, row)
    whole = np.stack(list(vectors.values()))
    by_hand = [
        distance_of_features(
            torch.from_numpy(np.delete(whole, slice(3 * k, 3 * k + 3), axis=0)), Gaussian(**vars(gaussian))
        )
        for k in range(10)
    ]
    assert found.without == pytest.approx(np.array(by_hand))
    assert found.estimate.n == 10


LENGTHY = (
    "experiment=few_steps model=sd15",
    "experiment=solver_race model=sd15",
    "experiment=solver_race_error model=sd15",
    "experiment=solver_race_order model=sd15",
    "experiment=guidance_scale model=sd15",
    "experiment=strength_study_sd15",
    "experiment=inpaint_study_sd15",
)


@pytest.mark.parametrize("line", LENGTHY)
@pytest.mark.spread(1)
def test_a_model_of_the_hub_is_one_override(line: str, tmp_path: Path, monkeypatch, capsys) -> None:
    from research.cli import run as research

    monkeypatch.chdir(tmp_path)
    assert research([*line.split(), "--plan", "--json"]) == 0  # every point composes and may run
    assert {job["state"] for job in json.loads(capsys.readouterr().out)["jobs"]} == {"waiting"}
    assert not list(tmp_path.iterdir())
    assert research([*line.split(), "--cfg", "job"]) == 0
    told = capsys.readouterr().out
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in told
    assert "emoji-eval" not in told  # judged by a model of its own size


def test_the_index_names_every_study() -> None:
    page = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    folders = {file.parent.name for file in (ROOT / "experiments").glob("*/README.md")}
    assert {name.partition("/")[0] for name in re.findall(r"\]\((\w+/README\.md)\)", page)} == folders

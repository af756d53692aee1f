"""What cannot be used is refused in one line that says the key, what was found and what is accepted; nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import research
from research.cli import run


def installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


# what is wrong -> the words that the line must hold
CASES: dict[str, tuple[list[str], list[str]]] = {
    "a scheduler for a sampler": (["sampler=euler"], ["sampler: unknown sampler 'euler'", "scheduler=euler"]),
    "unknown scheduler": (["scheduler=dimm"], ["scheduler", "'dimm'", "Did you mean 'ddim'?", "euler_a"]),
    "unknown guidance": (["guidance=cgf"], ["guidance", "'cgf'", "Did you mean 'cfg'?", "none"]),
    "unknown task": (["task=text2image"], ["task", "Did you mean 'text_to_image'?", "unconditional"]),
    "unknown metrics": (["metrics=[clip_scor]"], ["metrics", "Did you mean 'clip_score'?"]),
    "unknown in a sweep": (["-m", "scheduler=ddim,eulr"], ["'eulr'", "Did you mean 'euler'?"]),
    "unknown experiment": (["experiment=quickstrat"], ["Did you mean 'quickstart'?"]),
    "a hub id as a model": (["model=owner/name"], ["model: found 'owner/name'", "model=custom model.path=owner/name"]),
    "unknown key": (["step=3"], ["step:", "Did you mean 'steps'?"]),
    "unknown key added": (["+sead=3"], ["sead:", "Did you mean 'seed'?"]),
    "unknown key forced": (["++sead=3"], ["sead:", "Did you mean 'seed'?"]),
    "unknown group": (["schedulers=ddim"], ["schedulers:", "Did you mean 'scheduler'?"]),
    "unknown nested key": (["guidance.scal=3"], ["guidance.scal:", "Did you mean 'scale'?"]),
    "unknown nested key added": (["+guidance.foo=1"], ["guidance.foo:", "CFG", "Accepted: scale"]),
    "unknown model key": (["model.dtyp=float32"], ["model.dtyp:", "Did you mean 'dtype'?"]),
    "unknown scheduler option": (["scheduler.options.etta=1"], ["scheduler.options.etta:", "Did you mean 'eta'?"]),
    "unknown hydra key": (["hydra.nonsense=1"], ["hydra.nonsense"]),
    "unknown launcher": (["-m", "hydra/launcher=jblib"], ["hydra/launcher", "'jblib'", "basic"]),
    **{
        f"{name} not installed": (["-m", f"hydra/{group}={name}"], [package, "not installed"])
        for group, name, package in (
            ("sweeper", "optuna", "hydra-optuna-sweeper"),
            ("launcher", "joblib", "hydra-joblib-launcher"),
            ("launcher", "submitit_slurm", "hydra-submitit-launcher"),
            ("launcher", "ray", "hydra-ray-launcher"),
        )
        if not installed(package)
    },
    "prompt in the task": (["task.prompt=fox"], ["task.prompt:", "prompts"]),
    "scheduler class unknown": (
        ["scheduler=custom", "scheduler.class_name=DDIMSheduler"],
        ["scheduler", "DDIMSheduler", "Did you mean"],
    ),
    "steps zero": (["steps=0"], ["steps:", "found 0", "whole number from 1"]),
    "steps negative": (["steps=-3"], ["steps:", "found -3"]),
    "steps not whole": (["steps=2.5"], ["steps:", "found 2.5"]),
    "steps true": (["steps=true"], ["steps:", "found True"]),
    "steps a word": (["steps=many"], ["steps:", "'many'"]),
    "steps null": (["steps=null"], ["steps:", "found None"]),
    "steps in a sweep": (["-m", "steps=5,0"], ["steps:", "found 0"]),
    "more steps than timesteps": (["steps=1001"], ["steps:", "found 1001", "1000"]),
    "scale nan": (["guidance.scale=nan"], ["guidance.scale:", "NaN"]),
    "scale infinite": (["guidance.scale=inf"], ["guidance.scale:", "finite"]),
    "scale a word": (["guidance.scale=high"], ["guidance.scale:", "'high'"]),
    "scale true": (["guidance.scale=true"], ["guidance.scale:", "True"]),
    "prompts empty": (["prompts=[]"], ["prompts:", "empty list"]),
    "prompts no list": (["prompts=fox"], ["prompts:", "'fox'", "list"]),
    "prompts of numbers": (["prompts=[1,2]"], ["prompts[0]:", "found 1"]),
    "images_per_prompt": (["images_per_prompt=0"], ["images_per_prompt:", "found 0"]),
    "batch_size": (["batch_size=-1"], ["batch_size:", "found -1", "auto"]),
    "seed a word": (["seed=abc"], ["seed:", "'abc'"]),
    "seed negative": (["seed=-1"], ["seed:", "found -1"]),
    "seed too large": ([f"seed={2**63 - 1}"], ["seed:", str(2**63 - 1)]),
    "on_failure": (["on_failure=stopp"], ["on_failure:", "Did you mean 'stop'?", "continue"]),
    "margin a word": (["report.margin.fid=much"], ["report.margin.fid:", "'much'", "5%"]),
    "unit of another kind": (["report.unit=images"], ["report.unit:", "'images'", "seeds"]),
    "margin of nothing": (["report.margin=2"], ["report.margin:", "found 2", "clip_score"]),
    "margin swept": (["-m", "report.margin.fid=1,2"], ["report.margin.fid:", "whole sweep"]),
    "report key": (["report.margn=2"], ["report.margn:", "Did you mean 'margin'?"]),
    "resume": (["resume=maybe"], ["resume:", "true, false"]),
    "progress": (["runtime.progress=bar"], ["runtime.progress:", "Did you mean 'bars'?"]),
    "threads": (["runtime.threads=0"], ["runtime.threads:", "found 0"]),
    "dtype": (["model.dtype=float23"], ["model.dtype:", "Did you mean 'float32'?"]),
    "device": (["model.device=gpu"], ["model.device:", "'gpu'", "cuda"]),
    "sweep_name with a slash": (["sweep_name=a/b"], ["sweep_name:", "'a/b'"]),
    "model path": (["model.path=/no/such/model"], ["model.path", "/no/such/model", "does not exist"]),
    "model path missing": (["model=custom", "metrics=none"], ["model.path", "must be given"]),
    "a model of one's own, without metrics": (
        ["model=custom", "model.path=emoji"],
        ["metrics: must be given", "metrics=none", "metrics.fid.reference=", "prompts=", "prompt_set="],
    ),
    "a model of one's own, without prompts": (
        ["model=custom", "model.path=emoji", "metrics=none"],
        ["prompts: found an empty list", "prompt_set"],
    ),
    "class missing": (["guidance._target_=nowhere.Mine"], ["guidance._target_", "nowhere"]),
    "class misspelt": (["guidance._target_=research.guidance.CGF"], ["guidance._target_", "Did you mean 'CFG'?"]),
    "height": (["task.height=13"], ["task.height:", "found 13", "multiple of 2"]),
    "no value": (["steps"], ["'steps'", "key=value"]),
    "unreadable value": (["prompts=[a,b"], ["prompts=[a,b", "cannot be read"]),
    "beyond ascii unquoted": (["prompts=[é]"], ["prompts=[é]", "double quotes"]),
    "several values without -m": (["steps=1,2"], ["steps=1,2", "-m"]),
    "interval": (["-m", "steps=interval(1,2)"], ["steps:", "interval", "range"]),
    "list of schedulers": (["scheduler=[ddim,euler]"], ["scheduler:", "list"]),
    "unknown flag": (["--no-such-flag"], ["--no-such-flag", "--help"]),
    "config dir": (["--config-dir", "/no/such/folder"], ["--config-dir", "/no/such/folder"]),
    "fid with one image": (["metrics=fid", "prompts=[fox]"], ["fid", "1 image", "at least 2"]),
    "output folder": (["output_dir=/proc/nowhere"], ["output_dir:", "/proc/nowhere", "cannot be written"]),
    "output under a file": (["output_dir=occupied/below"], ["output_dir:", "occupied", "cannot be written"]),
    "hook key": (["+hooks.mine=3"], ["hooks.mine", "_target_"]),
    "key under a number": (["steps.more=3"], ["steps:"]),
    "deleted": (["~task"], ["task"]),
}


@pytest.fixture
def folder(tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES)
@pytest.mark.spread(8)
def test_one_clear_line(case: str, folder: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv, words = CASES[case]
    own = any(a.startswith("model=") for a in argv)
    base = ["tracker=none", *([] if own or "metrics" in " ".join(argv) else ["metrics=none"])]
    if not own and not any(a.startswith("model.path") for a in argv):
        base.append(f"model.path={tiny_sd}")
    code = run([*argv, *base])
    shown = capsys.readouterr()
    assert code == 2, shown
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1, shown.err
    for word in words:
        assert word in shown.err
    for noise in ("HYDRA_FULL_ERROR", "Traceback", "hydra.cc"):
        assert noise not in shown.err
    assert [entry.name for entry in folder.iterdir()] == ["occupied"]


def test_nothing_heavy_is_imported_to_refuse(tmp_path: Path) -> None:
    program = (
        "import json, sys\n"
        "from research.cli import run\n"
        "codes = [run([*argv, 'tracker=none', 'model.path=some/model']) for argv in json.loads(sys.argv[1])]\n"
        "assert codes == [2] * len(codes), codes\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules\n"
    )
    argvs = [
        ["steps=0"],
        ["guidance.foo=1"],
        ["scheduler.options.foo=1"],
        ["hooks.mine=1"],
        ["prompts=[fox]", "metrics=fid"],
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(research.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(argvs)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == len(argvs)


def test_a_sweep_names_the_job_that_cannot_run(folder: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = [f"model.path={tiny_sd}", "tracker=none", "metrics=none"]
    assert run(["-m", "guidance.scale=1,nan", "steps=2,3", *base]) == 2
    assert "in the job guidance.scale=nan steps=2" in capsys.readouterr().err
    assert not (folder / "outputs").exists()


def test_broken_models(
    tmp_path: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    broken = shutil.copytree(tiny_sd, tmp_path / "broken")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    pickled = shutil.copytree(tiny_sd, tmp_path / "pickled")
    (pickled / "unet" / "diffusion_pytorch_model.safetensors").rename(pickled / "unet" / "diffusion_pytorch_model.bin")
    for model, words in {
        "empty": ["model_index.json"],
        "broken": ["not a whole safetensors file", "unet"],
        "pickled": ["pickled", "model.allow_pickle=true"],
    }.items():
        assert run([f"model.path={tmp_path / model}", "tracker=none", "metrics=none"]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert all(word in line for word in ["model.path", *words]), line
    assert not (tmp_path / "outputs").exists()


def test_full_error_shows_the_stack(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESEARCH_FULL_ERROR", "1")
    assert run(["steps=0"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.rstrip().splitlines()[-1].startswith("error: steps:")

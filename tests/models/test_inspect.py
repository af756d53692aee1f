"""`inspect_model` and ``research-inspect``: the right verdict on whole, broken and hostile models, in one clear line each."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.broken import CANARY, DIRECTORIES, TEXT, UNET, VAE, Evil, more_files, shard, to_pickle, to_variant
from support.tiny_models import edit_json, save_tiny_sd

from research import LoopSampler, load_model
from research.errors import ModelError
from research.models.inspect.inspect_model import inspect_model
from research.models.inspect.pickles import check_pickle, report_pickle
from research.models.inspect_cli import run
from research.tasks import TextToImage


@pytest.fixture
def canary(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "code-was-run"
    monkeypatch.setenv(CANARY, str(path))
    return path


def refused(path, **arguments) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path, device="cpu", **arguments)
    return str(caught.value)


# --- whole models


def test_a_whole_pipeline(sd_directory):
    found = inspect_model(sd_directory)
    assert (found.verdict, found.reason, found.problems) == ("safe", None, [])
    assert (found.kind, found.pipeline, found.role) == ("pipeline", "StableDiffusionPipeline", "text")
    parts = {part["name"]: part for part in found.components}
    for name, file in (("unet", UNET), ("vae", VAE), ("text_encoder", TEXT)):
        tensors = load_file(sd_directory / file)
        assert parts[name]["parameters"] == sum(t.numel() for t in tensors.values())
        assert parts[name]["bytes"] == sum(t.nbytes for t in tensors.values())
        assert list(parts[name]["dtypes"]) == ["F32"]
    assert parts["unet"]["class_name"] == "UNet2DConditionModel"
    assert parts["safety_checker"]["class_name"] is None
    assert found.memory["bytes"]["float32"] == 4 * load_model(sd_directory, device="cpu").parameter_count()
    assert found.pickles == []


def test_the_scheduler_is_told(sd_v_directory, copied):
    found = inspect_model(sd_v_directory)
    assert found.scheduler["class_name"] == "DDIMScheduler"
    assert found.scheduler["prediction_type"] == "v_prediction"
    assert found.scheduler["timestep_spacing"] == "leading"
    assert found.scheduler["terminal_snr"] == pytest.approx(0.0047, abs=2e-4)
    assert not found.scheduler["zero_terminal_snr"]
    directory = copied(sd_v_directory)
    edit_json(directory / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    assert inspect_model(directory).scheduler["zero_terminal_snr"]


@pytest.mark.parametrize(
    ("name", "role", "task"),
    [
        ("sd_directory", "text", "text_to_image"),
        ("pixel_directory", "pixel", "unconditional"),
        ("sd_odd_directory", "text", "inpaint"),
    ],
)
def test_what_goes_with_it(name, role, task, request):
    found = inspect_model(request.getfixturevalue(name))
    assert (found.verdict, found.role) == ("safe", role)
    assert task in found.tasks
    assert "ddim" in found.schedulers
    assert "flow_euler" not in found.schedulers


@pytest.mark.parametrize("name", ["emoji", "emoji-pixel"])
def test_zoo_names(name):
    assert inspect_model(name).verdict == "safe"


@pytest.mark.brought("Directories", "weights in shards, with an index", "accepted", "")
def test_shards(sd, sd_directory, copied):
    directory = copied(sd_directory)
    shard(directory)
    assert inspect_model(directory).verdict == "safe"
    model = load_model(directory, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.unet.parameters(), sd.unet.parameters(), strict=True))


@pytest.mark.brought(
    "Directories",
    "weights of one variant alone, as `model.fp16.safetensors`",
    "accepted",
    "the weights are of one variant",
)
def test_one_variant_loads_and_is_told(sd, sd_directory, copied):
    directory = copied(sd_directory)
    to_variant(directory)
    found = inspect_model(directory)
    assert found.verdict == "safe"
    assert {part["variant"] for part in found.components if part["files"]} == {"fp16"}
    model = load_model(directory, device="cpu")
    assert model.dtype == torch.float32
    for ours, given in zip(model.modules(), sd.modules(), strict=True):
        assert all(torch.equal(a, b.half().float()) for a, b in zip(ours.parameters(), given.parameters(), strict=True))


def test_plain_weights_come_before_a_variant_and_a_variant_of_one_part_is_none(sd_directory, copied):
    directory = copied(sd_directory)
    whole = (directory / UNET).read_bytes()
    to_variant(directory, (UNET,))
    (directory / UNET).write_bytes(whole)
    found = inspect_model(directory)
    assert found.verdict == "safe"
    assert {part["variant"] for part in found.components} == {""}


def test_pickles_that_are_not_read_are_listed(sd_directory, copied, canary):
    directory = copied(sd_directory)
    whole = (directory / UNET).read_bytes()
    to_pickle(directory, "unet", {"a": Evil()})
    (directory / UNET).write_bytes(whole)
    found = inspect_model(directory)
    assert found.verdict == "safe"
    (listed,) = found.pickles
    assert (listed["read"], listed["foreign"]) == (False, ["posix mkdir"])
    load_model(directory, device="cpu", allow_pickle=True)
    assert not canary.exists()


@pytest.mark.parametrize("parts", [("unet",), ("unet", "vae", "text_encoder")])
def test_pickled_weights(sd_directory, copied, parts):
    directory = copied(sd_directory)
    for part in parts:
        to_pickle(directory, part)
    found = inspect_model(directory)
    assert found.verdict == "pickle"
    assert found.sentence.startswith("loads only with --allow-pickle")
    assert len(found.pickles) == len(parts)
    assert all(each["read"] and not each["foreign"] for each in found.pickles)
    assert "allow_pickle" in refused(directory)
    load_model(directory, device="cpu", allow_pickle=True)


# --- broken ones


@pytest.mark.parametrize("name", DIRECTORIES)
@pytest.mark.spread(8)
def test_a_broken_directory(name, sd_directory, copied, canary, capsys):
    spoil, say = DIRECTORIES[name]
    directory = copied(sd_directory, "a model with späces")
    spoil(directory)
    code = run([str(directory)])
    printed = capsys.readouterr()
    assert code == 1
    assert "Traceback" not in printed.out + printed.err
    verdict = printed.out.strip().splitlines()[-1]
    assert "verdict" in verdict
    assert "cannot be loaded" in verdict
    assert say in printed.out
    for allow in (False, True):
        message = refused(directory, allow_pickle=allow)
        assert "\n" not in message
        assert str(directory) in message
    assert not canary.exists()


def test_other_things_that_are_no_pipeline(tmp_path, canary, capsys):
    for name, (path, say) in more_files(tmp_path).items():
        code = run([str(path)])
        printed = capsys.readouterr()
        assert code == 1, name
        assert "Traceback" not in printed.out + printed.err, name
        assert "cannot be loaded" in printed.out.strip().splitlines()[-1], name
        assert say in printed.out, (name, printed.out)
        for allow in (False, True):
            assert "\n" not in refused(path, allow_pickle=allow), name
    assert not canary.exists()


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(sd_directory, copied):
    directory = copied(sd_directory)
    (directory / UNET).chmod(0)
    assert "permission denied" in inspect_model(directory).sentence


def test_parts_that_were_not_made_for_one_another(sd_directory, sd_odd_directory, copied):
    directory = copied(sd_directory)
    for file in (sd_odd_directory / "vae").iterdir():
        (directory / "vae" / file.name).write_bytes(file.read_bytes())
    found = inspect_model(directory)
    assert found.verdict == "no"
    assert "input channels" in found.sentence


def test_a_hub_id_without_a_network(no_network):
    found = inspect_model("nobody-at-all/no-such-model", offline=True)
    assert found.verdict == "no"
    assert "offline" in found.sentence
    assert no_network == []


# --- the command


def test_json(sd_directory, capsys):
    assert run([str(sd_directory), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == "safe"
    assert said["loads_safely"] is True
    assert said == inspect_model(str(sd_directory)).to_dict() | {"memory": said["memory"]}


def test_json_of_a_broken_one(tmp_path, capsys):
    assert run([str(tmp_path), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == "no"
    assert said["kind"] == "empty"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["emoji", "emoji"],
        ["emoji", "--jsno"],
        ["emoji", "--config"],
        ["emoji", "--config", "a", "--original-config", "b"],
        ["emoji", "--original-config", "b"],
        ["emoji", "--tokenizer", "b"],
        ["emoji", "--convert", "OUT", "--tokenizer", "b"],
        ["emoji", "--convert", "OUT", "--deep"],
    ],
)
def test_wrong_usage(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("research-inspect: ")
    assert len(printed.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_help(capsys):
    assert run(["--help"]) == 0
    assert "--convert" in capsys.readouterr().out


def command(*argv: object, **more) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "research.models.inspect_cli", *map(str, argv)]
    return subprocess.run(line, capture_output=True, text=True, timeout=600, **more)


@pytest.mark.slow
def test_as_a_process(sd_directory):
    done = command(sd_directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].split(maxsplit=1) == ["verdict", "loads safely"]


def test_in_a_terminal_that_knows_ascii_alone(tmp_path):
    directory = tmp_path / "späces"
    directory.mkdir()
    (directory / "model_index.json").write_text(json.dumps({"_class_name": "Pipe\ud800\x1b[2J空"}))
    done = command(directory, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 1
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


def test_nothing_heavy_for_a_plain_refusal(tmp_path):
    code = (
        "import sys; from research.models.inspect_cli import run; run([sys.argv[1]]);"
        "print(*sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.stderr.strip() == ""
    assert "empty directory" in done.stdout


def test_a_reader_that_goes_away(tmp_path):
    line = f"'{sys.executable}' -m research.models.inspect_cli '{tmp_path}' | true"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=600)
    assert done.stderr == ""


def test_what_was_promised_is_kept(tmp_path):
    directory = save_tiny_sd(tmp_path / "model", seed=3)
    assert inspect_model(directory).loads_safely
    sampler = LoopSampler(load_model(directory, device="cpu"), scheduler="ddim")
    assert torch.isfinite(sampler.sample(TextToImage("a cat"), seeds=[0], steps=2).latents).all()


# --- pickles


@pytest.mark.skipif(
    not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"), reason="of PyTorch 2.6 and later"
)
@pytest.mark.parametrize(
    "content",
    [
        {"a": torch.zeros(2), "b": {"c": torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))}},
        torch.nn.Linear(2, 2).state_dict(),
        torch.nn.Linear(2, 2),
        {"a": Evil()},
        {"a": [os.path.join, subprocess.run, print]},
    ],
    ids=["tensors", "state", "module", "evil", "functions"],
)
def test_what_torch_finds_unsafe_in_an_archive_is_refused(tmp_path, canary, content):
    file = tmp_path / "archive.bin"
    torch.save(content, file)
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    foreign = {name.replace(" ", ".").replace("__builtin__", "builtins") for name in report_pickle(file).foreign}
    assert set(unsafe) <= foreign
    assert bool(foreign) == bool(unsafe)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_name_that_is_put_together_on_the_stack_is_refused(tmp_path, protocol):
    file = tmp_path / "bare.bin"
    # the strings before it are of a name that would be accepted
    file.write_bytes(pickle.dumps(["collections", "OrderedDict", os.getcwd], protocol=protocol))
    assert report_pickle(file).foreign
    with pytest.raises(ModelError, match=r"pickle that names"):
        check_pickle(file)

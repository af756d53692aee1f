"""Sixteen small jobs: `research -m` against scripts of plain diffusers, scoring included, paired in one run.

    python benchmarks/sweep.py [--images 2] [--steps 10] [--rounds 3] [--processes 16] [--json FILE]

Each job draws the same prompts with the embedded model at one of two schedulers and eight guidance scales, writes its images as
PNG, scores them (CLIP score and FID on the embedded evaluation model) and writes a JSON of what it found. Sides:

    processes   a process of plain diffusers for each job
    loop        one process of plain diffusers that keeps pipeline, scorer and reference statistics
    ours        one `research -m`, with runtime.vectorise=off
    together    one `research -m` as it comes: jobs that differ in guidance.scale alone are sampled as one batch

A round runs all of them one after the other, alternating in which order; ratios are of the same round. "shell" is from start
to end of the processes, imports and loading included; "jobs" is without loading and what comes after the last job;
"cpu" is the processor's time of the processes, which says more where other work shares the machine. One thread a process.
Plain scripts import nothing of the project; what they write is compared with what we write.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT / "research" / "zoo"
PROMPTS = [
    "pizza on a blue background", "strawberry on a yellow background", "hamburger on a purple background",
    "cat face on a gray background", "tiger face on an orange background", "octopus on a green background",
    "sunflower on a white background", "smiling face on a red background",
]  # fmt: skip
SCHEDULERS = {"ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler"}
SCALES = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.5)
JOBS = [(scheduler, scale) for scheduler in SCHEDULERS for scale in SCALES]


# -- the other side: plain diffusers, transformers and torch


class Plain:
    """What a careful person writes by hand: everything is loaded once, images are embedded once for both scores."""

    def __init__(self) -> None:
        import diffusers
        import torch
        import transformers
        from safetensors.torch import load_file

        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()
            library.utils.logging.set_verbosity_error()
        torch.set_num_threads(1)
        self.pipeline = diffusers.StableDiffusionPipeline.from_pretrained(ZOO / "emoji")
        self.pipeline.set_progress_bar_config(disable=True)
        self.clip = transformers.CLIPModel.from_pretrained(ZOO / "emoji-eval").eval()
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(ZOO / "emoji-eval")
        self.processor = transformers.CLIPImageProcessor.from_pretrained(ZOO / "emoji-eval")
        self.reference = load_file(ZOO / "references" / "emoji.safetensors")

    def job(self, scheduler: str, scale: float, prompts: list[str], steps: int, folder: Path) -> None:
        import diffusers
        import torch

        pipeline = self.pipeline
        pipeline.scheduler = getattr(diffusers, SCHEDULERS[scheduler]).from_config(pipeline.scheduler.config)
        generators = [torch.Generator().manual_seed(k) for k in range(len(prompts))]
        images = pipeline(prompts, num_inference_steps=steps, guidance_scale=scale, generator=generators).images
        folder.mkdir(parents=True, exist_ok=True)
        for k, image in enumerate(images):
            image.save(folder / f"{k:05d}.png")
        found = {"scheduler": scheduler, "scale": scale, **self.score(images, prompts)}
        (folder / "result.json").write_text(json.dumps(found))

    def score(self, images: list[Any], prompts: list[str]) -> dict[str, float]:
        import torch

        with torch.no_grad():
            pixels = self.processor(images, return_tensors="pt").pixel_values
            seen = _pooled(self.clip.get_image_features(pixel_values=pixels)).double()
            tokens = self.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
            read = _pooled(self.clip.get_text_features(**tokens)).double()
        clip_score = 100 * torch.cosine_similarity(seen, read).clamp(min=0).mean()
        count = int(self.reference["num_samples"])
        mean = self.reference["feature_sum"] / count
        cov = (self.reference["feature_outer_sum"] - count * mean[:, None] * mean) / (count - 1)
        own = torch.cov(seen.T)
        roots = torch.linalg.eigvals(own @ cov).sqrt().real.sum()
        fid = ((seen.mean(0) - mean) ** 2).sum() + own.trace() + cov.trace() - 2 * roots
        return {"clip_score": float(clip_score), "fid": float(fid)}


def _pooled(output: Any) -> Any:
    return getattr(output, "pooler_output", output)


def plain(jobs: list[int], images: int, steps: int, out: Path) -> None:
    """Run jobs by their numbers and say on the last line of stdout how many seconds they took."""
    tools = Plain()
    start = time.perf_counter()
    for number in jobs:
        tools.job(*JOBS[number], PROMPTS[:images], steps, out / str(number))
    print(json.dumps({"jobs": time.perf_counter() - start}))


# -- measuring


def timed(command: list[str], cwd: Path) -> tuple[dict[str, float], str]:
    """Wall-clock seconds and CPU seconds of a command, and what it printed; it must end well."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
    }
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"shell": wall, "cpu": cpu}, done.stdout


def run_plain(jobs: list[int], arguments: argparse.Namespace, out: Path) -> dict[str, float]:
    numbers = ",".join(map(str, jobs))
    command = [sys.executable, __file__, "--plain", numbers, str(out), "--images", str(arguments.images)]
    times, said = timed([*command, "--steps", str(arguments.steps)], out)
    return {**times, **json.loads(said.splitlines()[-1])}


def run_ours(name: str, arguments: argparse.Namespace, out: Path, *more: str) -> dict[str, float]:
    command = [
        sys.executable, "-m", "research", "-m", f"scheduler={','.join(SCHEDULERS)}",
        f"guidance.scale={','.join(map(str, SCALES))}", f"prompts=[{','.join(PROMPTS[: arguments.images])}]",
        f"steps={arguments.steps}", f"tracker={arguments.tracker}", f"sweep_name={name}", f"output_dir={out}",
        "runtime.threads=1",
    ]  # fmt: skip
    times, _ = timed([*command, *more], out)
    records = [json.loads(file.read_text()) for file in (out / name).glob("*/result.json")]
    assert len(records) == len(JOBS)
    assert all(record["status"] == "done" for record in records)
    # the plain sides load model and scorer before their first job: here the first job says what they took
    scoring = [record["timings"]["metrics"] for record in records]
    jobs = sum(record["timings"]["total"] - record["timings"]["load"] for record in records)
    return {**times, "jobs": jobs - (max(scoring) - statistics.median(scoring))}


def largest_difference(out: Path, name: str) -> int:
    """The largest difference of a pixel, of 255, between our images and those of the plain loop."""
    import numpy as np
    from PIL import Image

    largest = 0
    for file in (out / name).glob("*/result.json"):
        record = json.loads(file.read_text())
        number = JOBS.index((record["config"]["scheduler"]["name"], record["config"]["guidance"]["scale"]))
        for k, entry in enumerate(record["images"]):
            ours = np.asarray(Image.open(file.parent / entry["file"]), dtype=int)
            theirs = np.asarray(Image.open(out / "loop" / str(number) / f"{k:05d}.png"), dtype=int)
            largest = max(largest, int(np.abs(ours - theirs).max()))
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2, help="of each job, from 2 (FID) to 8")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--processes",
        type=int,
        default=16,
        help="jobs that get a process each in every round; the time of sixteen follows in proportion. 0 leaves that side out",
    )
    parser.add_argument("--tracker", default="none", help="of our sides: none or wandb (offline)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--plain", nargs=2, metavar=("JOBS", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        jobs, out = arguments.plain
        plain([int(number) for number in jobs.split(",")], arguments.images, arguments.steps, Path(out))
        return

    machine = platform.processor() or platform.machine()
    print(f"{machine}, 1 thread a process; {len(JOBS)} jobs of {arguments.images} images, {arguments.steps} steps,")
    print(
        f"CLIP score and FID, tracker {arguments.tracker}; {arguments.rounds} paired rounds, {os.getloadavg()[0]:.1f} load before"
    )
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(arguments.rounds):
        with TemporaryDirectory() as scratch:
            rounds.append(one_round(arguments, Path(scratch), backwards=bool(number % 2)))
        show(rounds[-1:], f"round {number + 1}")
    show(rounds, "median")
    if arguments.json:
        arguments.json.write_text(json.dumps(rounds, indent=2))


def one_round(arguments: argparse.Namespace, scratch: Path, *, backwards: bool) -> dict[str, dict[str, float]]:
    everything = list(range(len(JOBS)))

    def processes() -> dict[str, float]:
        few = everything[:: max(1, len(JOBS) // arguments.processes)][: arguments.processes]
        times = [run_plain([job], arguments, scratch) for job in few]
        return {key: sum(t[key] for t in times) / len(few) * len(JOBS) for key in times[0]}

    def loop() -> dict[str, float]:
        (scratch / "loop").mkdir(exist_ok=True)
        return run_plain(everything, arguments, scratch / "loop")

    sides = {
        **({"processes": processes} if arguments.processes else {}),
        "loop": loop,
        "ours": lambda: run_ours("ours", arguments, scratch, "runtime.vectorise=off"),
        "together": lambda: run_ours("together", arguments, scratch),
    }
    times = {name: sides[name]() for name in (reversed(sides) if backwards else sides)}
    difference = max(largest_difference(scratch, name) for name in ("ours", "together"))
    print(f"largest difference of a pixel to plain diffusers: {difference} of 255")
    return {name: times[name] for name in sides}


def show(rounds: list[dict[str, dict[str, float]]], title: str) -> None:
    print(
        f"{title:<12}{'shell s':>9}{'jobs s':>9}{'cpu s':>9}   x faster than loop (shell, jobs, cpu)   than processes (shell)"
    )

    def median(values: Any) -> float:
        return statistics.median(list(values))

    for name in rounds[0]:
        shown = [median(r[name][key] for r in rounds) for key in ("shell", "jobs", "cpu")]
        ratios = [median(r["loop"][key] / r[name][key] for r in rounds) for key in ("shell", "jobs", "cpu")]
        line = f"{name:<12}" + "".join(f"{value:>9.2f}" for value in shown)
        line += "   " + " ".join(f"{ratio:6.2f}" for ratio in ratios)
        if "processes" in rounds[0]:
            line += f"{median(r['processes']['shell'] / r[name]['shell'] for r in rounds):>26.1f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()

"""One evaluation of the network: as it is written, compiled by torch, and with its channels last, side by side in one run.

    python benchmarks/network.py [--model emoji] [--batches 1 2 8 32] [--ways eager channels_last compile] [--rounds 15]

A round times each way once; rounds alternate which goes first, and a ratio is the median over rounds of one way's time over
the eager one's in the same round. Seconds of compiling are given apart. Then a whole run of the loop: how often a step reads
from the device (host syncs).

On a GPU also the limit, one evaluation replayed from a CUDA graph, and the model FLOPs utilisation (MFU), the share of the card's
peak (--peak, in TFLOP/s for the dtype) that an evaluation reaches. What is for a GPU alone has not been run on one yet.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from research import LoopSampler, load_model
from research.guidance import CFG
from research.models.compiled import seconds_compiling
from research.tasks import TextToImage

WAYS = ("eager", "channels_last", "compile")
READS = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero")


class CountReads(TorchDispatchMode):
    """Counts operations that a GPU would have to be waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in READS
        return func(*args, **(kwargs or {}))


def call_of(model: Any, batch: int) -> Callable[[], Any]:
    """One evaluation for a batch of latents."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((batch, *model.latent_shape(None, None)), generator=generator).to(model.device, model.dtype)
    t = torch.tensor(500, device=model.device)
    arguments = {}
    if "text" in model.supports:
        arguments["encoder_hidden_states"] = model.text.encode(["a pizza"] * batch)
    return lambda: model.network(x, t, return_dict=False, **arguments)[0]


def seconds(call: Callable[[], Any], device: torch.device, least: float = 0.05) -> float:
    """Of one call, over as many as last ``least`` seconds."""
    synchronize(device)
    start, count = time.perf_counter(), 0
    while not count or time.perf_counter() - start < least:
        call()
        count += 1
    synchronize(device)
    return (time.perf_counter() - start) / count


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def replayed(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call as a CUDA graph. Not run on a GPU yet."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def flops(call: Callable[[], Any]) -> int:
    """Of one call; attention is counted by its plain formula, as fused kernels count as none."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


def reads_a_step(model: Any, steps: int = 20) -> float:
    """Reads from the device in a whole run less those of a run of one step, by step."""

    def run(count: int) -> int:
        sampler = LoopSampler(model, "ddim", guidance=CFG(3.0))
        if model.device.type == "cuda":  # not run on a GPU yet
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    sampler.sample(TextToImage("a pizza"), seeds=[0], steps=count, progress=False)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            return sum("synchroniz" in str(each.message) for each in seen)
        with CountReads() as counter:
            sampler.sample(TextToImage("a pizza"), seeds=[0], steps=count, progress=False)
        return counter.count

    return (run(steps + 1) - run(1)) / steps


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 8, 32])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device for this dtype, for the MFU")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")

    ways = ["eager", *(way for way in arguments.ways if way != "eager")]
    settings = {"dtype": arguments.dtype, "device": arguments.device}
    models = {way: load_model(arguments.model, **settings, **({way: True} if way != "eager" else {})) for way in ways}
    device, dtype = models["eager"].device, models["eager"].dtype
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, 1 thread"
    print(f"{arguments.model}, {where}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}")
    print(f"{arguments.rounds} paired rounds; milliseconds an evaluation (median), ratios to eager")

    rows = []
    for batch in arguments.batches:
        calls = {way: call_of(model, batch) for way, model in models.items()}
        compiling = seconds_compiling()
        for call in calls.values():
            call(), call()
        compiling = seconds_compiling() - compiling
        if device.type == "cuda":
            calls["cuda_graph"] = replayed(calls["eager"])
        times: dict[str, list[float]] = {way: [] for way in calls}
        for round_ in range(arguments.rounds):
            for way in calls if round_ % 2 else reversed(calls):
                times[way].append(seconds(calls[way], device))
        work = flops(calls["eager"])
        row: dict[str, Any] = {"batch": batch, "gflop": work / 1e9, "compiling": compiling}
        for way, found in times.items():
            row[way] = statistics.median(found) * 1e3
            row[f"{way}/eager"] = statistics.median(a / b for a, b in zip(found, times["eager"], strict=True))
        rows.append(row)
        told = "  ".join(f"{way} {row[way]:.2f} ({row[f'{way}/eager']:.2f})" for way in times)
        mfu = (
            f", MFU {work / (min(row[way] for way in times) * 1e-3) / arguments.peak / 1e12:.0%}"
            if arguments.peak
            else ""
        )
        print(f"batch {batch:>3}: {told}; {work / 1e9:.2f} GFLOP{mfu}; compiling {compiling:.0f} s", flush=True)
    if "text" in models["eager"].supports:
        print(f"reads from the device a step: {reads_a_step(models['eager']):g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()

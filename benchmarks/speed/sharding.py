"""Memory that a process needs to load its part of released weights: reading all, or its own part only.

    python -m benchmarks.speed.sharding --layers 24 --processes 2

A random Wan in the released layout is written to a temporary folder, in bfloat16. Processes on the CPU then
shard it in float32, once after each has read all of it and once before any weight is read. It prints each
process's largest growth of private memory (RssAnon, sampled every 2 ms) and the size of its part of the
weights. Mapped pages of the files are not counted: they are shared, and can be dropped.
"""

import argparse
import re
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes

from ai_wam.errors import CannotContinue
from backbones.codecs.patch import PatchCodec
from backbones.conditions.prompts import HashedWords
from backbones.wan import Wan
from backbones.weights.sharded_loading import deferred_weights

WIDTH = {"num_attention_heads": 4, "attention_head_dim": 128, "ffn_dim": 2048, "text_dim": 64}


def main(layers: int, processes: int) -> None:
    """Write the weights, measure both ways, print a line for each."""
    with tempfile.TemporaryDirectory() as folder:
        network = WanTransformer3DModel(in_channels=48, out_channels=48, num_layers=layers, **WIDTH)
        size = sum(p.numel() for p in network.parameters()) * 4e-6
        network.to(torch.bfloat16).save_pretrained(Path(folder) / "transformer", max_shard_size="100MB")
        del network
        print(f"{size:.0f} MB of weights in float32, {processes} processes")
        for way in ("all read, then sharded", "sharded, then read"):
            start_processes(_measure, (processes, folder, way), nprocs=processes)


def _measure(rank: int, processes: int, folder: str, way: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/{way.replace(' ', '-')}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    before, peak, done = _private(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _private())
            time.sleep(0.002)

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.perf_counter()
    with nullcontext() if way.startswith("all") else deferred_weights():
        wan = Wan(folder, codec=PatchCodec(48), prompts=HashedWords(64, 16))
    wan.shard(init_device_mesh("cpu", (processes,)))
    parts = [p.to_local() for p in wan.denoiser.parameters() if isinstance(p, DTensor)]
    own = sum(part.numel() * part.element_size() for part in parts) / 1e6
    seconds = time.perf_counter() - began
    done.set()
    watching.join()
    print(f"  {way}: process {rank}: {peak - before:.0f} MB at most, its part {own:.0f} MB, {seconds:.1f} s")
    distributed.destroy_process_group()


def _private() -> float:
    """Private memory of this process in MB."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise CannotContinue("/proc/self/status has no RssAnon; this needs Linux")
    return int(found[1]) / 1e3


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=24, help="blocks of the network, 4.2 M weights each")
    parser.add_argument("--processes", type=int, default=2)
    main(**vars(parser.parse_args()))

"""Load and faults of a served policy: `python -m benchmarks.speed.serve [--requests 10000]`.

Clients on the loopback interface ask at once, each for its next chunk as soon as it has the last one. Printed
are requests per second, and per second of the server's processor time, which other work on the machine hardly
touches, with batches across clients and without; how long an answer takes (50, 95 and 99 % are faster),
answers that are lost or another request's, and the growth of the server's memory; then what happens when
clients and server fail.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jsonargparse import auto_cli

from ai_wam.client import Connection
from ai_wam.errors import CannotContinue
from ai_wam.files.packed_policy import unpack
from benchmarks.speed.serve_faults import print_faults
from benchmarks.speed.served_process import ServedProcess, robot

_BAR_BATCHED, _BAR_MEMORY = 3.0, 0.1
_KINDS = 8  # different observations, each with its own right answer
_SAME = 1e-4  # metres and quaternion components: batches of other sizes round differently


class Load(NamedTuple):
    """What came of many requests.

    Attributes:
        per_second: answers.
        per_cpu_second: answers per second of the server's processor time; 0 where that is not known.
        waits: seconds of every answer.
        lost: requests without an answer.
        wrong: answers to another request.
        megabytes: of the server's memory after a tenth of the requests, and at the end.
    """

    per_second: float
    waits: np.ndarray
    lost: int
    wrong: int
    megabytes: tuple[float, float]
    per_cpu_second: float = 0.0


def report(
    ckpt_path: str | None = None,
    requests: int = 10_000,
    unbatched_requests: int = 1_000,
    clients: int = 16,
    sampling_steps: int = 1,
    faults: bool = True,
) -> None:
    """Print the tables.

    Args:
        ckpt_path: the policy; that of `ai-wam demo` if left out.
        requests: of all clients together.
        unbatched_requests: the same, where every request is computed alone.
        clients: at once.
        sampling_steps: of the model; a step more costs every request the same, batched or alone.
        faults: whether to try them.

    Raises:
        RuntimeError: a request was lost or mixed up, or another client was not served during a fault.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = Path(ckpt_path or folder / "policy.ckpt")
        if ckpt_path is None:
            unpack(Path(str(files("ai_wam.demo"))) / "policy.safetensors", checkpoint)
        print(f"{clients} clients, {sampling_steps} sampling steps, one thread of the server's CPU")
        alone = _print_load("alone", checkpoint, folder, 1, unbatched_requests, clients, sampling_steps)
        together = _print_load("batched", checkpoint, folder, clients, requests, clients, sampling_steps)
        ratio = together.per_second / alone.per_second
        cpu_ratio = together.per_cpu_second / alone.per_cpu_second
        grown = together.megabytes[1] / together.megabytes[0] - 1
        verdict = _verdict(min(ratio, cpu_ratio) >= _BAR_BATCHED, f">= {_BAR_BATCHED:g}")
        print(f"batched over alone: {ratio:.2f}, by processor time {cpu_ratio:.2f} {verdict}")
        print(f"memory: {grown:+.1%} {_verdict(abs(grown) <= _BAR_MEMORY, f'within {_BAR_MEMORY:.0%}')}")
        if alone.lost or alone.wrong or together.lost or together.wrong:
            raise CannotContinue("requests were lost or mixed up; see the table")
        if faults and not print_faults(checkpoint, folder):
            raise CannotContinue("a fault of one client was felt by another, or said nothing; see the table")


def _print_load(
    name: str, checkpoint: Path, folder: Path, batch: int, requests: int, clients: int, steps: int
) -> Load:
    options = {"max_batch": batch, "sampling_steps": steps, "limits.clients": clients + 1, "limits.rate": 1e6}
    with ServedProcess(checkpoint, folder, options) as server:
        used = server.cpu_seconds()
        found = measured(server.address, server.megabytes, requests, clients)
        found = found._replace(per_cpu_second=len(found.waits) / (server.cpu_seconds() - used))
        status = server.stop()
    p50, p95, p99 = 1e3 * np.quantile(found.waits, [0.5, 0.95, 0.99])
    before, after = found.megabytes
    speed = f"{found.per_second:.1f} a second, {found.per_cpu_second:.1f} a CPU second"
    speed += f"; p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f} ms"
    safety = f"{found.lost} lost, {found.wrong} mixed up; memory {before:.0f} -> {after:.0f} MB"
    print(f"{name:<8} {requests:>6} requests: {speed}; {safety}; stopped with {status}", flush=True)
    return found


def measured(address: str, megabytes: Callable[[], float], requests: int, clients: int) -> Load:
    """Ask with several clients at once.

    Args:
        address: of the server.
        megabytes: memory that it holds now.
        requests: of all clients together.
        clients: at once.
    """
    with Connection(address) as first:
        size, views = tuple(first.metadata["image_size"]), list(first.metadata["views"])
        messages = [robot(kind, size, views) for kind in range(_KINDS)]
        answers = [first.ask(message) for message in messages]
    right = [answer["actions"] for answer in answers]
    if not all(answer["valid"].any() for answer in answers):
        raise CannotContinue("some chunks have no valid action: held poses do not differ by row")
    left, lock = iter(range(requests)), threading.Lock()
    waits: list[float] = []
    wrong, memory = 0, [0.0]

    def ask() -> None:
        nonlocal wrong
        with Connection(address, timeout=300.0) as client:
            while (number := _next(left, lock)) is not None:
                begun = time.perf_counter()
                answer = client.ask(messages[number % _KINDS])["actions"]
                waits.append(time.perf_counter() - begun)
                wrong += not np.allclose(answer, right[number % _KINDS], atol=_SAME, equal_nan=True)
                if number == requests // 10:
                    memory[0] = megabytes()

    begun = time.perf_counter()
    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - begun
    ends = (memory[0], megabytes())
    return Load(len(waits) / spent, np.array(waits), requests - len(waits), wrong, ends)


def _next(left: Iterator[int], lock: threading.Lock) -> int | None:
    with lock:
        return next(left, None)


def _verdict(good: bool, bar: str) -> str:
    return f"(bar {bar}: {'met' if good else 'MISSED'})"


if __name__ == "__main__":
    auto_cli(report, as_positional=False)

"""`ai-wam serve`: a trained policy that robots and benchmarks ask for actions over a websocket."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule

from ai_wam import __version__
from ai_wam.cli.errors import Ended
from ai_wam.cli.load_policy import load_policy
from ai_wam.cli.load_task import digest
from ai_wam.errors import MissingPackage
from ai_wam.files.token_file import read_token
from ai_wam.serving.limits import Limits
from ai_wam.serving.warm_up import warm_up
from ai_wam.utils.class_paths import class_path
from ai_wam.utils.number_checks import check_numbers
from tasks.world_action_model import WorldActionModel

_SAME = 1.0  # seconds within which signals are one


def serve(
    ckpt_path: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: str | None = None,
    max_batch: int = 16,
    batch_wait_ms: float = 5.0,
    sampling_steps: int | None = None,
    decoder: str | None = None,
    threads: int | None = None,
    log: str | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> None:
    """Serve a checkpoint's policy until SIGTERM or Ctrl-C; what was accepted is answered before it stops.

    Args:
        ckpt_path: a world action model that acts, or a diffusion policy.
        host: address to listen at; beyond this machine a token is needed.
        port: 0 takes any free one.
        token_file: file with the token that clients must send.
        max_batch: observations that go through the network together at most.
        batch_wait_ms: that a batch waits for sessions which have no request waiting.
        sampling_steps: of the model; the checkpoint's own if left out.
        decoder: of the actions ("whole", "geometric", "latent", "head"); the checkpoint's own if left out.
        threads: of the CPU; what torch takes if left out.
        log: file to which events are appended, one JSON value a line; the terminal if left out.
        limits: of messages, sessions and time.
    """
    try:
        from ai_wam.serving.server import PolicyServer, check_address
    except ImportError as error:
        raise MissingPackage("ai-wam serve needs websockets and more: pip install 'ai-wam[serve]'") from error
    from ai_wam.serving.json_log import JsonLog

    check_numbers("serve", at_least=1, max_batch=max_batch, threads=threads)
    check_numbers("serve", at_least=0, batch_wait_ms=batch_wait_ms)
    check_numbers("serve", at_least=0, at_most=65535, port=port)
    token = None if token_file is None else read_token(token_file)
    check_address(host, token)
    policy = _policy(ckpt_path, {"sampling.steps": sampling_steps, "decoder": decoder}, threads)
    described = describe(policy) | {
        "checkpoint": {"file": Path(ckpt_path).name, "sha256": digest(ckpt_path)},
        "max_batch": max_batch,
        "limits": asdict(limits),
    }
    with ExitStack() as stack:
        stream = sys.stderr if log is None else stack.enter_context(Path(log).open("a", encoding="utf-8"))
        events = JsonLog(partial(print, file=stream, flush=True))
        wait = batch_wait_ms / 1e3
        server = PolicyServer(policy, policy.clip, described, events, limits, max_batch, wait, token)
        first = partial(warm_up, policy, policy.clip, sorted({1, max_batch}), described["prefixes"][:1])
        ends, cut_off = asyncio.run(_until_signal(server, host, port, first))
    what = f"{cut_off} requests were cut off" if cut_off else "all accepted requests were answered"
    message = f"ai-wam serve: stopped by {signal.Signals(ends).name}; {what}"
    print(message, file=sys.stderr)
    raise Ended(message, 128 + ends)


def _policy(ckpt_path: str, asked: Mapping[str, Any], threads: int | None) -> Any:
    """The policy of a checkpoint, with the numbers of `ai-wam test`."""
    torch.set_float32_matmul_precision("high")  # as that command does
    if threads is not None:
        torch.set_num_threads(threads)
    changes = [f"{name}={value}" for name, value in asked.items() if value is not None]
    return load_policy(ckpt_path, *changes, device="cuda" if torch.cuda.is_available() else "cpu").model


def describe(policy: LightningModule) -> dict[str, Any]:
    """What clients need to know of a policy, as JSON values."""
    clip: Any = policy.clip
    prefixes: list[int] = []
    if isinstance(policy, WorldActionModel) and policy.prefix.condition:
        step = policy.backbone.spec.frame_multiple
        prefixes = list(range(step, clip.frames - 1, step))
    return {
        "server": f"ai-wam {__version__}",
        "policy": class_path(policy),
        "views": list(clip.views),
        "image_size": list(clip.size),
        "horizon": (getattr(policy, "decoded_frames", None) or clip.frames) - 1,
        "dt": clip.seconds_per_frame,
        "control_hz": clip.control_hz,
        "prefixes": prefixes,
    }


async def _until_signal(server: Any, host: str, port: int, first: Callable[[], None]) -> tuple[int, int]:
    """Serve; the signal that ended it, and how many requests were cut off."""
    stop = asyncio.Event()
    with _signals(stop) as received:
        cut_off = await server.run(host, port, stop, first, partial(_say, host, server.token))
    return received[0], cut_off


def _say(host: str, token: str | None, port: int) -> None:
    print(f"serving at ws://{host}:{port}; health at http://{host}:{port}/healthz, metrics at /metrics")
    if token is not None:
        print(
            "The connection is not encrypted, so token and pictures can be read on the way: put a proxy that "
            "ends TLS before this port, and give clients its wss:// address."
        )
    sys.stdout.flush()


@contextmanager
def _signals(stop: asyncio.Event) -> Iterator[list[int]]:
    """Set an event at the first SIGTERM or SIGINT and list it; a second one ends the process at once."""
    loop, received = asyncio.get_running_loop(), list[int]()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    at = time.monotonic()

    def note(number: int) -> None:
        nonlocal at
        if not received:
            at = time.monotonic()
            received.append(number)
            stop.set()
        elif time.monotonic() - at > _SAME and callable(handler := before[signal.Signals(number)]):
            handler(number, None)

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            loop.add_signal_handler(number, note, number)
    try:
        yield received
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

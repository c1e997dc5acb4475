"""A policy served by a thread of the tests' process, and what a robot would send to it."""

import asyncio
import json
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ai_wam.cameras import Cameras
from ai_wam.cli.load_policy import load_policy
from ai_wam.cli.serve import describe
from ai_wam.client import Camera
from ai_wam.episodes import Frame, View
from ai_wam.files.packed_policy import unpack
from ai_wam.serving.json_log import JsonLog
from ai_wam.serving.limits import Limits
from ai_wam.serving.server import PolicyServer
from ai_wam.types import Clip
from benchmarks.simulator import Trial
from benchmarks.simulators.tabletop.simulator import Tabletop
from tasks.policy import PolicyControl

CLIP = Clip()
STATE = np.array([0.3, 0.0, 1.2, 0.0, 1.0, 0.0, 0.0, 1.0])
PROMPT = "reach the red sphere"


@cache
def trained_policy() -> PolicyControl:
    """That of `ai-wam demo`, in one step: a random one's poses are all invalid, and so all the same."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.ckpt"
        unpack(Path(str(files("ai_wam.demo"))) / "policy.safetensors", file)
        policy = load_policy(str(file), "sampling.steps=1").model
    assert isinstance(policy, PolicyControl)
    return policy


@cache
def frame(seed: int = 0) -> Frame:
    """A scene of `reach_target`, larger than the policy's pictures."""
    simulator = Tabletop(rig="framed", image_size=(96, 96))
    simulator.reset(Trial("reach_target", 0, seed))
    seen = simulator.observe(CLIP.views)
    simulator.close()
    return seen


def stacked(views: Iterable[View | Camera]) -> Cameras:
    """Cameras of several views as tensors "v 3 3" and "v 4 4"."""
    parts = [(view.intrinsics, view.world_from_camera) for view in views]
    return Cameras(*(torch.from_numpy(np.stack(matrices)) for matrices in zip(*parts, strict=True)))


@contextmanager
def served(policy: Any, warm_up: Callable[[Any], None] = lambda _: None, **options: Any) -> Iterator[Any]:
    """The address, the lines logged so far and a way to stop a served policy."""
    given = options.pop("described", {"horizon": 8, "prefixes": [4], "dt": 0.2})
    described = describe(policy) if isinstance(policy, PolicyControl) else given
    known = {"token", "most_rows", "wait_seconds"}
    limits = Limits(**{name: value for name, value in options.items() if name not in known})
    options = {name: value for name, value in options.items() if name in known}
    written, started, found = list[str](), threading.Event(), SimpleNamespace()
    server = PolicyServer(policy, CLIP, described, JsonLog(written.append), limits, **options)

    async def run() -> None:
        first = partial(warm_up, found)
        found.loop, found.asked = asyncio.get_running_loop(), asyncio.Event()

        def ready(port: int) -> None:
            found.port, found.address = port, f"127.0.0.1:{port}"
            started.set()

        found.cut_off = await server.run("127.0.0.1", 0, found.asked, first, ready)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    found.thread, found.server = thread, server
    found.log = lambda: [json.loads(line) for line in written]
    thread.start()
    found.stop = lambda: found.loop.call_soon_threadsafe(found.asked.set)
    try:
        assert started.wait(30)
        yield found
    finally:
        if thread.is_alive():
            found.stop()
            thread.join(30)
        assert not thread.is_alive()


def ended(found: Any, session: str, reason: str) -> None:
    """Wait until the log says that a session ended, and why."""
    deadline = time.monotonic() + 20
    while True:
        lines = [line for line in found.log() if line["event"] == "session_closed"]
        if found_lines := [line["reason"] for line in lines if line["session"] == session]:
            assert reason in found_lines[0]
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def get(address: str, path: str, **headers: str) -> tuple[int, str]:
    """Status and text of a page."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://{address}{path}", headers=headers)
        ) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def cameras() -> dict[str, Camera]:
    views = frame().views.items()
    return {name: Camera(view.intrinsics.copy(), view.world_from_camera.copy()) for name, view in views}


def images(seed: int = 0) -> dict[str, np.ndarray]:
    return {name: view.image for name, view in frame(seed).views.items()}


def state(seed: int = 0) -> np.ndarray:
    action = frame(seed).action
    assert action is not None
    return action


def message(seed: int = 0, **more: Any) -> dict[str, Any]:
    """An observation as any client of openpi's layout sends it."""
    sent = {name: vars(camera) for name, camera in cameras().items()}
    whole = {"images": images(seed), "cameras": sent, "state": state(seed), "prompt": PROMPT, "seconds": 0.0}
    return whole | more

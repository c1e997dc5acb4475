"""A policy served by a thread of the tests' process, and what a robot would send to it."""

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ai_wam.cli.serve import describe
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.client import Camera
from ai_wam.diffusion.solvers import Sampling
from ai_wam.serving.json_log import JsonLog
from ai_wam.serving.limits import Limits
from ai_wam.serving.server import PolicyServer
from ai_wam.types import Clip
from backbones.base import VideoBackbone
from tasks.policy import PolicyControl

CLIP = Clip(size=(32, 32))
STATE = np.array([0.3, 0.0, 1.2, 0.0, 1.0, 0.0, 0.0, 1.0])
PROMPT = "reach the red ball"


def tiny_policy() -> PolicyControl:
    torch.manual_seed(0)
    backbone = instantiate("configs/backbone/wan-tiny.yaml", VideoBackbone)
    return PolicyControl(backbone, CLIP, sampling=Sampling(steps=1)).eval()


@contextmanager
def served(policy: Any, warm_up: Callable[[Any], None] = lambda _: None, **options: Any) -> Iterator[Any]:
    """The address, the lines logged so far and a way to stop a served policy."""
    known = {"token", "most_rows", "wait_seconds"}
    limits = Limits(**{name: value for name, value in options.items() if name not in known})
    options = {name: value for name, value in options.items() if name in known}
    written, started, found = list[str](), threading.Event(), SimpleNamespace()
    described = (
        describe(policy) if isinstance(policy, PolicyControl) else {"horizon": 8, "prefixes": [4], "dt": 0.2}
    )
    server = PolicyServer(policy, CLIP, described, JsonLog(written.append), limits, **options)

    async def run() -> None:
        first = partial(warm_up, found)
        found.loop, found.asked = asyncio.get_running_loop(), asyncio.Event()

        def ready(port: int) -> None:
            found.port, found.address = port, f"127.0.0.1:{port}"
            started.set()

        await server.run("127.0.0.1", 0, found.asked, first, ready)

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
    k, beside = np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]]), np.eye(4)
    beside[:3] = [[0, 0, -1, 1], [0, 1, 0, 0], [1, 0, 0, 1]]
    return {"front": Camera(k, np.eye(4)), "left_shoulder": Camera(k, beside)}


def images(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: draw.integers(0, 256, (48, 64, 3), dtype=np.uint8) for name in CLIP.views}


def message(seed: int = 0, **more: Any) -> dict[str, Any]:
    """An observation as any client of openpi's layout sends it."""
    sent = {name: vars(camera) for name, camera in cameras().items()}
    return {"images": images(seed), "cameras": sent, "state": STATE, "prompt": PROMPT, "seconds": 0.0} | more

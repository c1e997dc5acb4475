"""Every Python example of the documentation runs; a new one is given what it needs here, or fails."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from documented import ADD_BACKBONE, PAGES, fenced
from serving_thread import cameras, images, served, stacked, state, trained_policy

from ai_wam.cameras import CropResize
from ai_wam.files.packed_policy import unpack
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shards.reader import ShardSet

ROOT = Path(__file__).parents[2]
ELSEWHERE = {  # pages whose examples other tests run
    ADD_BACKBONE: "tests/unit/test_docs_backbone.py",
    ROOT / "docs/checkpoints.md": "each line is for another pipeline: tests/unit/test_lora_files.py",
}
Names = dict[str, Any]


class Done(Exception):
    """What ends an example that has no end of its own."""


@contextmanager
def action_images() -> Iterator[Names]:
    actions = torch.from_numpy(state()).repeat(1, 3, 1)
    enlarged = CropResize((96, 96), (256, 256)).cameras(stacked(cameras().values()))
    still = enlarged[None, :, None].map(lambda each: each.expand(1, 2, 3, *each.shape[-2:]))
    intrinsics, extrinsics = still.to_rlbench()
    names = {"actions": actions, "intrinsics": intrinsics, "extrinsics": extrinsics}
    yield names
    assert names["images"].shape == (1, 2, 3, 3, 256, 256)
    assert bool(names["decoded"].valid.all())
    torch.testing.assert_close(names["decoded"].actions, actions, atol=1e-3, rtol=0, check_dtype=False)


@contextmanager
def shards() -> Iterator[Names]:
    episodes = MovingSquares(2, 30)
    names: Names = {"episodes": [episodes[i] for i in range(2)]}
    yield names
    assert [episode.key for episode in ShardSet("data/mine").episodes] == [e.key for e in names["episodes"]]


@contextmanager
def predict() -> Iterator[Names]:
    unpack(Path(str(files("ai_wam.demo"))) / "policy.safetensors", Path("last.ckpt"))
    seen, given = images(), stacked(cameras().values())
    names: Names = {"front": seen["front"], "left": seen["left_shoulder"], "pose": state()}
    names |= {"intrinsics": given.intrinsics, "world_from_camera": given.world_from_camera}
    yield names
    chunk = names["chunk"]
    assert chunk.actions.shape == (1, 8, 8)
    assert bool(chunk.valid.all())
    # The first action continues from the present pose.
    assert np.abs(chunk.actions[0, 0, :3].numpy() - state()[:3]).max() < 0.1


@contextmanager
def one_chunk() -> Iterator[Names]:
    names: Names = {"pose": state()}
    for view, name in (("front", "front"), ("left_shoulder", "left")):
        names |= {name: images()[view], f"{name}_intrinsics": cameras()[view].intrinsics}
        names |= {f"{name}_pose": cameras()[view].world_from_camera}
    yield names
    assert names["chunk"].actions.shape == (8, 8)
    assert names["chunk"].valid.all()


@contextmanager
def chunk_after_chunk() -> Iterator[Names]:
    moved = list[np.ndarray]()

    def move_to(action: np.ndarray) -> None:
        moved.append(action)
        if len(moved) == 10:
            raise Done

    names: Names = {"images": images(), "cameras": cameras(), "state": state()}
    yield names | {"robot": SimpleNamespace(move_to=move_to)}
    assert len(moved) == 10


GIVEN: dict[str, list[Callable[[], Any]]] = {
    "action_images": [action_images],
    "shards": [shards],
    "predict": [predict],
    "serve": [one_chunk, chunk_after_chunk],
}
EXAMPLES = [
    pytest.param(page, i, code, id=f"{page.stem}-{i}")
    for page in PAGES
    if page not in ELSEWHERE
    for i, code in enumerate(fenced(page, "python"))
]


@pytest.mark.parametrize(("page", "index", "code"), EXAMPLES)
def test_an_example_of_the_documentation_runs(page, index, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        if page.stem == "serve":
            address = stack.enter_context(served(trained_policy())).address
            code = code.replace("localhost:8000", address)
        names = stack.enter_context(GIVEN[page.stem][index]())
        with suppress(Done):
            exec(compile(code, f"{page.name}, example {index}", "exec"), names)

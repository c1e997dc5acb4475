"""Reads the small members of an episode (JSON, actions, cameras), and checks them against the index."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ai_wam.errors import InvalidValue
from ai_wam.files.json_yaml import parse_json
from ai_wam.files.numpy_arrays import read_npy, read_npz
from datamodules.shards.format import ACTIONS, CAMERAS, META, EpisodeEntry
from datamodules.shards.frame_checks import check_actions, check_cameras

_HEADER = 16_384  # bytes at most of an array's header in a .npz
_K = Mapping[str, Float[np.ndarray, "_ 3 3"]]
_Poses = Mapping[str, Float[np.ndarray, "_ 4 4"]]


def read_meta(data: bytes, entry: EpisodeEntry) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """Phrasings and provenance of an episode.

    Raises:
        ValueError: no JSON object, or one of another episode or with values of another kind.
    """
    meta = parse_json(data.decode(), META)
    if not isinstance(meta, dict):
        raise InvalidValue(f"it holds a {type(meta).__name__}, expected a JSON object")
    sizes = {view: list(size) for view, size in entry.views.items()}
    index = {"key": entry.key, "frames": entry.frames, "hz": entry.hz, "views": sizes}
    for name, known in index.items():
        if meta.get(name) != known:
            raise InvalidValue(f"its {name} is {meta.get(name)!r:.100}, the index says {known!r}")
    instructions, provenance = meta.get("instructions"), meta.get("provenance")
    if not isinstance(instructions, list) or not all(isinstance(text, str) for text in instructions):
        raise InvalidValue(f"instructions must be a list of texts, got {instructions!r}"[:200])
    if not instructions:
        raise InvalidValue("there is no instruction; the empty text stands for an unknown one")
    if not isinstance(provenance, dict):
        raise InvalidValue(f"provenance must be an object, got {provenance!r}"[:200])
    return tuple(instructions), provenance


def read_actions(data: bytes, entry: EpisodeEntry) -> Float[np.ndarray, "t 8"]:
    """Poses and openness of every frame.

    Raises:
        ValueError: no array of float32 numbers "frames 8", or numbers that are no actions.
    """
    actions = read_npy(data, ACTIONS)
    _check(actions, "it", [(entry.frames, 8)])
    check_actions(actions)
    return actions


def read_cameras(data: bytes, entry: EpisodeEntry) -> tuple[_K, _Poses]:
    """K and poses of every view.

    Raises:
        ValueError: a view that is missing, other arrays than float32 matrices of one frame or of all, or
            matrices that are no cameras.
    """
    kinds = {"intrinsics": 3, "world_from_camera": 4}
    names = [f"{view}.{kind}" for view in entry.views for kind in kinds]
    most = sum(_HEADER + 4 * size**2 * entry.frames for size in kinds.values()) * len(entry.views)
    arrays = read_npz(data, CAMERAS, names, most)
    for view in entry.views:
        stacks = {kind: arrays[f"{view}.{kind}"] for kind in kinds}
        for kind, size in kinds.items():
            shapes = [(frames, size, size) for frames in (1, entry.frames)]
            _check(stacks[kind], f"{view}.{kind}", shapes)
        if len({len(stack) for stack in stacks.values()}) > 1:
            lengths = {kind: len(stack) for kind, stack in stacks.items()}
            raise InvalidValue(f"view {view!r} has {lengths} matrices, expected as many of each")
        check_cameras(stacks["intrinsics"], stacks["world_from_camera"], f"view {view!r}")
    intrinsics, poses = ({view: arrays[f"{view}.{kind}"] for view in entry.views} for kind in kinds)
    return intrinsics, poses


def _check(array: np.ndarray, what: str, shapes: Sequence[tuple[int, ...]]) -> None:
    if array.dtype != np.float32 or array.shape not in shapes:
        allowed = " or ".join(map(str, dict.fromkeys(shapes)))
        raise InvalidValue(f"{what} has shape {array.shape} of {array.dtype}, expected {allowed} of float32")


def check_entry(entry: EpisodeEntry) -> None:
    """Refuse a number of frames that an episode's members are too small for, before it is used.

    Raises:
        ValueError: a member that is missing, or is too small for the frames.
    """
    videos = [f"{view}.mp4" for view in entry.views]
    if missing := [name for name in (META, CAMERAS, *videos) if name not in entry.members]:
        raise InvalidValue(f"episode {entry.key!r} lacks the member {missing[0]!r}")
    least = {name: (1, "byte") for name in videos} | {ACTIONS: (32, "bytes")}
    for name, (size, unit) in least.items():
        there = entry.members[name].size if name in entry.members else math.inf
        if there < size * entry.frames:
            raise InvalidValue(
                f"episode {entry.key!r}: {entry.frames} frames do not fit into the {there} bytes of "
                f"{name!r}, where each takes at least {size} {unit}"
            )

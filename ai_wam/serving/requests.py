"""Checks what a client sends and turns it into a policy's observation."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ai_wam.camera_checks import check_intrinsics, check_tool_near_pictures
from ai_wam.cameras import Cameras
from ai_wam.episodes import Frame, View
from ai_wam.errors import InvalidValue
from ai_wam.types import Clip, Committed, Observation

_LEAST_SIDE = 8  # pixels
_UNIT = 0.01  # how far a quaternion's length may be from 1
_RIGID = 1e-3
_KEYS = {"images", "cameras", "state", "prompt", "episode", "seconds", "committed", "generated"}
_STACKED = {
    "video": "v 3 1 h w",
    "view_mask": "v",
    "intrinsics": "v 1 3 3",
    "world_from_camera": "v 1 4 4",
    "action": "8",
    "seconds": "",
}


Matrix3 = Float[np.ndarray, "3 3"]
Matrix4 = Float[np.ndarray, "4 4"]


@dataclass(frozen=True)
class Request:
    """What one message asks for.

    Attributes:
        observation: to act on; None where episodes begin.
        generated: whether the answer has the generated videos.
        episodes: names of the episodes that begin.
        stacked: whether the message has rows, and so has its answer.
    """

    observation: Observation | None
    generated: bool = False
    episodes: tuple[str, ...] = ()
    stacked: bool = False


class Session:
    """What a server keeps of one connection: cameras, the episode and when it began.

    Args:
        clip: the policy's views and size.
        name: the episode until the client begins one.
        most_rows: of one message.
    """

    def __init__(self, clip: Clip, name: str, most_rows: int) -> None:
        self.clip, self.episode, self.most_rows = clip, name, most_rows
        self._began: float | None = None
        self._cameras: dict[str, tuple[Matrix3, Matrix4]] = {}

    def request(self, message: Mapping[str, Any]) -> Request:
        """What a message asks for.

        Raises:
            ValueError: what is wrong with it, and what is expected.
        """
        if "reset" in message:
            return self._reset(message["reset"])
        if "observation" in message:
            return self._stacked(message)
        if "images" not in message:
            raise InvalidValue(
                f"a message has the keys {sorted(message)[:8]}; it needs 'images' (to act) or 'reset' "
                "(episodes begin)"
            )
        return Request(self._observed(message), bool(message.get("generated", False)))

    def _reset(self, episodes: Any) -> Request:
        names = _texts(episodes, "reset")
        if not names:
            raise InvalidValue("reset names no episode; send one, or as many as a message has rows")
        self.episode, self._began = names[0], None
        return Request(None, episodes=names)

    # ------------------------------------------------------------------ one robot's pictures

    def _observed(self, message: Mapping[str, Any]) -> Observation:
        if unknown := sorted(set(message) - _KEYS):
            raise InvalidValue(f"an observation has unknown keys {unknown[:8]}; it may have {sorted(_KEYS)}")
        self._keep_cameras(message.get("cameras", {}))
        if not message["images"]:
            raise InvalidValue(f"images is empty; send at least one of the views {list(self.clip.views)}")
        views = {name: self._view(name, image) for name, image in _map(message["images"], "images").items()}
        frame = Frame(views, _pose(message.get("state")), self._seconds(message.get("seconds")))
        check_tool_near_pictures(frame)
        prompt, episode = message.get("prompt", ""), message.get("episode", self.episode)
        for name, text in (("prompt", prompt), ("episode", episode)):
            if not isinstance(text, str):
                raise InvalidValue(f"{name} is {_described(text)}; expected one text")
        made = Observation.from_frames([frame], [prompt], [episode], self.clip)
        if message.get("committed") is None:
            return made
        actions = torch.from_numpy(_committed(message["committed"]))[None]
        valid = torch.ones(actions.shape[:2], dtype=torch.bool)
        return replace(made, committed=Committed(actions, valid))

    def _keep_cameras(self, cameras: Any) -> None:
        for name, camera in _map(cameras, "cameras").items():
            self._check_view(name, "cameras")
            parts = _map(camera, f"camera {name!r}")
            if set(parts) != {"intrinsics", "world_from_camera"}:
                raise InvalidValue(
                    f"camera {name!r} has the keys {sorted(parts)[:8]}, expected 'intrinsics' [3, 3] and "
                    "'world_from_camera' [4, 4]"
                )
            k = _numbers(parts["intrinsics"], (3, 3), f"camera {name!r}: intrinsics")
            pose = _numbers(parts["world_from_camera"], (4, 4), f"camera {name!r}: world_from_camera")
            _check_camera(name, k, pose)
            self._cameras[name] = (k, pose)

    def _view(self, name: str, image: Any) -> View:
        self._check_view(name, "images")
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or not _is_picture(image.shape):
            raise InvalidValue(
                f"image {name!r} is {_described(image)}; expected RGB uint8 [h, w, 3], at least "
                f"{_LEAST_SIDE} pixels both ways"
            )
        if name not in self._cameras:
            raise InvalidValue(
                f"image {name!r} comes without a camera, and none was sent for it in this session; send "
                "'cameras' with the session's first observation"
            )
        k, pose = self._cameras[name]
        check_intrinsics(k[None], (image.shape[0], image.shape[1]), f"camera {name!r}")
        return View(image, k.astype(np.float32), pose.astype(np.float32))

    def _check_view(self, name: str, key: str) -> None:
        if name not in self.clip.views:
            raise InvalidValue(
                f"{key} names the view {name!r}; this policy has {list(self.clip.views)} (see 'views' in the "
                "first message)"
            )

    def _seconds(self, given: Any) -> float:
        """Since the episode began, as sent or counted from its first observation."""
        if given is not None:
            if (seconds := float(_numbers(given, (), "seconds"))) < 0:
                raise InvalidValue(
                    f"seconds is {seconds:g}; give the time since the episode began, at least 0"
                )
            return seconds
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        return now - self._began

    # ------------------------------------------------------------------ rows as tensors

    def _stacked(self, message: Mapping[str, Any]) -> Request:
        """The rows of an `Observation`, tensor by tensor: pictures at the model's size, in [-1, 1]."""
        parts = _map(message["observation"], "observation")
        if missing := [name for name in (*_STACKED, "prompts", "episodes") if name not in parts]:
            raise InvalidValue(f"observation lacks {missing}; see docs/serve.md for its layout")
        prompts, episodes = (_texts(parts[name], name) for name in ("prompts", "episodes"))
        rows = len(prompts)
        if not 1 <= rows <= self.most_rows or len(episodes) != rows:
            raise InvalidValue(
                f"a message has {rows} prompts and {len(episodes)} episodes; it may have 1 to "
                f"{self.most_rows} rows: ask for fewer at once, or have the server started with a larger "
                "--max_batch"
            )
        sizes = {"v": len(self.clip.views), "h": self.clip.size[0], "w": self.clip.size[1]}
        tensors = {}
        for name, letters in _STACKED.items():
            shape = (rows, *(sizes.get(each) or int(each) for each in letters.split()))
            tensors[name] = torch.from_numpy(_numbers(parts[name], shape, f"observation: {name}"))
        cameras = Cameras(tensors.pop("intrinsics"), tensors.pop("world_from_camera"))
        tensors["view_mask"] = tensors["view_mask"].bool()
        made = Observation(
            cameras=cameras, prompts=prompts, episodes=episodes, committed=_stacked_committed(parts, rows),
            **tensors,
        )  # fmt: skip
        return Request(made, bool(message.get("generated", False)), stacked=True)


def _stacked_committed(parts: Mapping[str, Any], rows: int) -> Committed | None:
    if parts.get("committed") is None:
        return None
    given = _map(parts["committed"], "committed")
    actions = given.get("actions")
    count = actions.shape[1] if isinstance(actions, np.ndarray) and actions.ndim == 3 else 0
    numbers = _numbers(actions, (rows, count, 8), "committed: actions")
    valid = _numbers(given.get("valid"), (rows, count), "committed: valid")
    return Committed(torch.from_numpy(numbers), torch.from_numpy(valid).bool())


def _committed(given: Any) -> Float[np.ndarray, "p 8"]:
    count = given.shape[0] if isinstance(given, np.ndarray) and given.ndim == 2 else 0
    actions = _numbers(given, (count, 8), "committed")
    for action in actions:
        _check_quaternion(action, "committed")
    return actions


def _pose(state: Any) -> Float[np.ndarray, "8"]:
    pose = _numbers(state, (8,), "state: x y z (metres), quaternion x y z w, openness")
    _check_quaternion(pose, "state")
    if not 0 <= pose[7] <= 1:
        raise InvalidValue(f"state: openness must lie between 0 (closed) and 1 (open), got {pose[7]:g}")
    return pose


def _check_quaternion(pose: Float[np.ndarray, "8"], name: str) -> None:
    if abs((length := float(np.linalg.norm(pose[3:7]))) - 1) > _UNIT:
        raise InvalidValue(
            f"{name}: its quaternion {pose[3:7].tolist()} has length {length:.3g}, expected 1; the order is "
            "x y z, quaternion x y z w, openness"
        )


def _check_camera(name: str, k: Matrix3, pose: Matrix4) -> None:
    rotation = pose[:3, :3].astype(np.float64)
    if (
        abs(rotation @ rotation.T - np.eye(3)).max() > _RIGID
        or np.linalg.det(rotation) < 0
        or abs(pose[3] - (0, 0, 0, 1)).max() > _RIGID
    ):
        raise InvalidValue(
            f"camera {name!r}: world_from_camera is no rigid motion; send a rotation and a position in "
            "metres in a [4, 4] matrix whose last row is 0 0 0 1"
        )
    if not k[0, 0] or not k[1, 1] or abs(k[2] - (0, 0, 1)).max() > _RIGID:
        raise InvalidValue(
            f"camera {name!r}: intrinsics {k.tolist()} is no matrix K; send focal lengths and principal "
            "point in pixels of the picture, with the last row 0 0 1"
        )


def _numbers(value: Any, shape: Sequence[int], name: str) -> Float[np.ndarray, "..."]:
    """Finite numbers of a shape as float32, a copy; lists of numbers are arrays, too.

    Raises:
        ValueError: of another shape or type, or not finite.
    """
    if isinstance(value, list | int | float):
        with suppress(ValueError, OverflowError):  # lists of unequal lengths stay lists
            value = np.asarray(value)
    if not isinstance(value, np.ndarray) or value.shape != tuple(shape) or value.dtype.kind not in "biuf":
        raise InvalidValue(f"{name} is {_described(value)}; expected numbers {list(shape)}")
    with np.errstate(over="ignore"):  # a number that float32 cannot hold is refused as infinite
        numbers = value.astype(np.float32)
    if bad := int(numbers.size - np.isfinite(numbers).sum()):
        raise InvalidValue(
            f"{name} has {bad} of {numbers.size} numbers that are NaN or infinite; send finite numbers"
            + ("; leave out a view whose camera is unknown" if name.startswith("camera ") else "")
        )
    return numbers


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise InvalidValue(f"{name} is {_described(value)}; expected text")
    return tuple(value)


def _map(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidValue(f"{name} is {_described(value)}; expected a map by name")
    return value


def _is_picture(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[2] == 3 and min(shape[:2]) >= _LEAST_SIDE


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {list(value.shape)} of {value.dtype}"
    return "missing" if value is None else f"of type {type(value).__name__}"

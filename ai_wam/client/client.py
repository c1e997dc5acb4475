"""A robot's side of a served policy: one call from pictures to actions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ai_wam.client.connection import Connection


@dataclass(frozen=True)
class Camera:
    """Where a camera is and how it projects.

    Attributes:
        intrinsics: K [3, 3] in pixels of the pictures that are sent with it.
        world_from_camera: rigid [4, 4], metres, OpenCV axes.
    """

    intrinsics: np.ndarray
    world_from_camera: np.ndarray


@dataclass(frozen=True)
class Chunk:
    """The next actions of a served policy.

    Attributes:
        actions: [a, 8] at dt, 2 dt, ... after the observation: x y z in metres, quaternion x y z w, openness
            (1 = open), in the world frame.
        valid: [a], False where a pose must not be executed.
        confidence: [a], in [0, 1].
        dt: seconds between two actions.
        position_std: [a], metres per axis; None for a policy that gives none.
        timing: milliseconds by name, measured by the server: `infer_ms` of the network, `queue_ms` of waiting
            for it, `batch_rows` that it computed together, `prev_total_ms` of the previous answer.
        status: [a], why actions are not valid, as numbers of `ai_wam.action_images.DecodeStatus`; None for a
            policy that gives none.
    """

    actions: np.ndarray
    valid: np.ndarray
    confidence: np.ndarray
    dt: float
    position_std: np.ndarray | None
    timing: Mapping[str, float]
    status: np.ndarray | None = None


class Client(Connection):
    """Acts through a served policy; needs NumPy, msgpack and websockets only.

    Args:
        address: such as "localhost:8000", or a ws:// or wss:// URL.
        token: of the server, if it asks for one.
        timeout: seconds to wait for the connection and for an answer.

    Raises:
        ConnectionLost: no server answers there, or it refuses the connection.
    """

    def __init__(self, address: str, token: str | None = None, timeout: float = 60.0) -> None:
        self._sent: dict[str, Camera] = {}  # in this session
        super().__init__(address, token, timeout)

    def connect(self) -> None:
        """Begin a new session; cameras are sent again with its first observation."""
        self._sent.clear()
        super().connect()

    def reset(self, episode: str) -> None:
        """Begin an episode; its name and the seconds since it began seed what the policy draws."""
        self.ask({"reset": [episode]})

    def predict_action(
        self,
        images: Mapping[str, np.ndarray],
        cameras: Mapping[str, Camera],
        instruction: str,
        state: np.ndarray,
        seconds: float | None = None,
        committed: np.ndarray | None = None,
    ) -> Chunk:
        """The next actions.

        Args:
            images: RGB [h, w, 3] uint8 by the policy's names of views (`metadata["views"]`), any size.
            cameras: of these views; sent only if they changed.
            instruction: what to do.
            state: [8], the tool's pose and openness now, as in an action.
            seconds: since the episode began; if left out, the server counts from its first observation.
            committed: [p, 8], actions that are carried out while the policy computes.

        Raises:
            RequestRefused: the server says why it cannot answer.
            ConnectionLost: the connection ended; call `connect`.
        """
        message: dict[str, Any] = {"images": dict(images), "state": np.asarray(state), "prompt": instruction}
        moved = {name: camera for name, camera in cameras.items() if not self._is_known(name, camera)}
        if moved:
            message["cameras"] = {
                name: {
                    "intrinsics": np.asarray(camera.intrinsics),
                    "world_from_camera": np.asarray(camera.world_from_camera),
                }
                for name, camera in moved.items()
            }
        if seconds is not None:
            message["seconds"] = seconds
        if committed is not None:
            message["committed"] = np.asarray(committed)
        answer = self.ask(message)
        self._sent |= {name: _copy(camera) for name, camera in moved.items()}
        return Chunk(
            actions=answer["actions"],
            valid=answer["valid"],
            confidence=answer["confidence"],
            dt=answer["dt"],
            position_std=answer.get("position_std"),
            timing=answer["server_timing"],
            status=answer.get("status"),
        )

    def _is_known(self, name: str, camera: Camera) -> bool:
        sent = self._sent.get(name)
        return (
            sent is not None
            and np.array_equal(sent.intrinsics, camera.intrinsics)
            and np.array_equal(sent.world_from_camera, camera.world_from_camera)
        )


def _copy(camera: Camera) -> Camera:
    """A camera that does not change with the caller's arrays."""
    return Camera(np.array(camera.intrinsics), np.array(camera.world_from_camera))

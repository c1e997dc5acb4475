"""A policy that another process serves (`ai-wam serve`), so that benchmarks judge what robots talk to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ai_wam.errors import InvalidValue, MissingPackage
from ai_wam.files.token_file import read_token
from ai_wam.types import ActionChunk, Clip, Observation

try:
    from ai_wam.client.connection import Connection
except ImportError as error:
    raise MissingPackage("benchmarks.remote_policy needs websockets: pip install 'ai-wam[serve]'") from error

_TENSORS = ("video", "view_mask", "action", "seconds")
_OPTIONAL = ("position_std", "status")


class RemotePolicy:
    """Asks a served policy; all rows of an observation go in one message and are computed together.

    Its answers are those of the policy itself in batches of the same rows, bit by bit.

    Args:
        address: such as "localhost:8000", or a ws:// or wss:// URL.
        token_file: file with the server's token, if it asks for one.
        timeout: seconds to wait for an answer.
        generated: whether the generated videos are sent back; reports show them, and failed trials are
            explained by them.
    """

    def __init__(
        self, address: str, token_file: str | None = None, timeout: float = 600.0, generated: bool = True
    ) -> None:
        token = None if token_file is None else read_token(token_file)
        self.address, self.generated = address, generated
        self._connection = Connection(address, token, timeout)

    def check_clip(self, clip: Clip) -> None:
        """Refuse a clip that is not the served policy's.

        Raises:
            ValueError: the message has both.
        """
        known = self._connection.metadata
        served = {"views": known["views"], "size": known["image_size"], "control_hz": known["control_hz"]}
        asked = {"views": list(clip.views), "size": list(clip.size), "control_hz": clip.control_hz}
        served |= {"horizon": known["horizon"], "seconds_per_frame": known["dt"]}
        asked |= {"horizon": clip.frames - 1, "seconds_per_frame": clip.seconds_per_frame}
        if wrong := {name: value for name, value in served.items() if asked[name] != value}:
            raise InvalidValue(
                f"the policy at {self.address} has {wrong}, the clip here "
                f"{ {name: asked[name] for name in wrong} }; set --model.clip to the served policy's"
            )

    def reset(self, episodes: Sequence[str]) -> None:
        """Say to the served policy that episodes begin."""
        self._connection.ask({"reset": list(episodes)})

    def predict_action(self, observation: Observation) -> ActionChunk:
        """The served policy's chunk."""
        answer = self._connection.ask({"observation": _packed(observation), "generated": self.generated})
        return ActionChunk(
            actions=_tensor(answer["actions"]),
            valid=_tensor(answer["valid"]),
            confidence=_tensor(answer["confidence"]),
            dt=float(answer["dt"]),
            generated={name: _tensor(video) for name, video in answer.get("generated", {}).items()},
            **{name: _tensor(answer[name]) for name in _OPTIONAL if name in answer},
        )


def _packed(observation: Observation) -> Mapping[str, Any]:
    cameras, committed = observation.cameras, observation.committed
    parts: dict[str, Any] = {name: getattr(observation, name).cpu().numpy() for name in _TENSORS}
    parts |= {name: matrix.cpu().numpy() for name, matrix in vars(cameras).items()}
    parts |= {"prompts": list(observation.prompts), "episodes": list(observation.episodes)}
    if committed is not None:
        parts["committed"] = {name: part.cpu().numpy() for name, part in vars(committed).items()}
    return parts


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())  # what was received is read-only

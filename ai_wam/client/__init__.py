"""A robot's side of a served policy (`ai-wam serve`): NumPy, msgpack and websockets, without torch."""

from ai_wam.client.client import Camera, Chunk, Client
from ai_wam.client.connection import Connection, ConnectionLost, RequestRefused
from ai_wam.client.real_time import Observed, RealTimeControl, Step

__all__ = [
    "Camera",
    "Chunk",
    "Client",
    "Connection",
    "ConnectionLost",
    "Observed",
    "RealTimeControl",
    "RequestRefused",
    "Step",
]

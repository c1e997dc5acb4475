"""A small moving scene whose poses and pixels are known by hand, for the fixtures of all sources.

Nothing here uses the project's own geometry: pixels come from a camera's position and three named directions,
so that a mistake in `ai_wam.cameras` or in a reader cannot hide.
"""

from dataclasses import dataclass, field

import numpy as np

SIZE = (48, 64)  # height, width


@dataclass(frozen=True)
class HandCamera:
    """A camera as a person would describe it.

    Attributes:
        position: metres, world.
        right: the direction in the world that is right in the picture.
        forward: the direction that it looks.
        focal: pixels.
        centre: the optical axis's pixel, x and y.
    """

    position: np.ndarray
    right: np.ndarray
    forward: np.ndarray
    focal: float = 60.0
    centre: tuple[float, float] = (32.0, 24.0)

    @property
    def down(self) -> np.ndarray:
        return np.cross(self.forward, self.right)

    def pixel(self, point: np.ndarray) -> np.ndarray:
        away = np.asarray(point) - self.position
        depth = away @ self.forward
        u = self.centre[0] + self.focal * (away @ self.right) / depth
        v = self.centre[1] + self.focal * (away @ self.down) / depth
        return np.array([u, v])

    @property
    def intrinsics(self) -> np.ndarray:
        return np.array([[self.focal, 0, self.centre[0]], [0, self.focal, self.centre[1]], [0, 0, 1.0]])

    @property
    def world_from_camera(self) -> np.ndarray:
        """OpenCV axes: the columns are right, down, forward, position."""
        pose = np.eye(4)
        pose[:3] = np.stack([self.right, self.down, self.forward, self.position], axis=1)
        return pose

    def moved(self, by: np.ndarray) -> "HandCamera":
        return HandCamera(self.position + by, self.right, self.forward, self.focal, self.centre)


def slanted(azimuth: float, pitch: float, target: np.ndarray, distance: float, **more: float) -> HandCamera:
    """A camera `distance` from the target that looks at it, `pitch` radians down."""
    forward = np.array([np.cos(azimuth) * np.cos(pitch), np.sin(azimuth) * np.cos(pitch), -np.sin(pitch)])
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    return HandCamera(np.asarray(target) - distance * forward, right, forward, **more)


TARGET = np.array([0.3, -0.05, 0.9])
FRONT = slanted(np.pi, np.radians(25), TARGET, 1.2)
SIDE = slanted(np.radians(70), np.radians(40), TARGET, 0.9, focal=48.0)
WRIST = HandCamera(np.array([0.3, -0.05, 1.4]), np.array([0.0, -1, 0]), np.array([0.0, 0, -1]), 50.0)


def tool_positions(frames: int, shift: float = 0.0) -> np.ndarray:
    """A gentle curve around the target, metres."""
    time = np.arange(frames) / 10 + shift
    return TARGET + np.stack([0.1 * np.sin(time), 0.12 * np.cos(time) - 0.1, 0.05 * time], axis=1)


def euler_xyz(frames: int) -> np.ndarray:
    """Roll, pitch, yaw per frame: rotations about the fixed x, then y, then z axis, radians."""
    time = np.arange(frames) / 10
    return np.stack([np.pi - 0.3 * time, 0.2 + 0.1 * time, -0.4 + 0.5 * time], axis=1)


def quaternion_of(euler: np.ndarray) -> np.ndarray:
    """x y z w of those angles, as the product of three half-angle quaternions written out."""
    (sr, sp, sy), (cr, cp, cy) = np.sin(euler.T / 2), np.cos(euler.T / 2)
    return np.stack(
        [
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
            cr * cp * cy + sr * sp * sy,
        ],
        axis=1,
    )


def poses(frames: int, shift: float = 0.0) -> np.ndarray:
    """Position and quaternion x y z w per frame."""
    return np.concatenate([tool_positions(frames, shift), quaternion_of(euler_xyz(frames))], axis=1)


def pictures(frames: int, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 "t h w 3": a ramp, a red and a blue corner against swapped channels, a bar that counts frames."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    ramp = (40 + rows + columns + 10 * seed)[None, ..., None].astype(np.uint8)
    images = np.repeat(np.repeat(ramp, 3, axis=3), frames, axis=0)
    images[:, :12, :12] = (200, 30, 30)
    images[:, :12, -12:] = (30, 30, 200)
    for number in range(frames):
        images[number, -12:, : 4 + 4 * number] = (30, 200, 30)
    return images


@dataclass(frozen=True)
class TrueEpisode:
    """What a reader must give.

    Attributes:
        key: its name.
        hz: frames per second.
        instructions: phrasings.
        actions: pose and openness per frame; None where the source has none.
        pixels: where the tool is in each view, per frame.
        images: pictures per view.
    """

    key: str
    hz: float
    instructions: tuple[str, ...]
    actions: np.ndarray | None
    pixels: dict[str, np.ndarray]
    images: dict[str, np.ndarray]


@dataclass(frozen=True)
class Truth:
    """A fixture: what to pass to the source, and what it must give.

    Attributes:
        init_args: override those of the YAML.
        episodes: all of them, in order.
        levels: how far a picture may be off, of 255: 0 where it was stored without loss.
    """

    init_args: dict[str, object]
    episodes: list[TrueEpisode]
    levels: float = 0.0
    notes: dict[str, object] = field(default_factory=dict)


def pixels(cameras: list[HandCamera] | HandCamera, points: np.ndarray) -> np.ndarray:
    """The pixel of each point in its frame's camera."""
    each = cameras if isinstance(cameras, list) else [cameras] * len(points)
    return np.stack([camera.pixel(point) for camera, point in zip(each, points, strict=True)])

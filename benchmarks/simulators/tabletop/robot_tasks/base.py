"""What a task of the tabletop suite is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from ai_wam.errors import CannotContinue
from benchmarks.simulators.tabletop import expert_motions as motion
from benchmarks.simulators.tabletop.camera_rigs import Workspace
from benchmarks.simulators.tabletop.kinematics import Pose
from benchmarks.simulators.tabletop.physics_world import World

T = TypeVar("T")

_ATTEMPTS = 2000
_TILT = np.deg2rad(10.0)


class Status(NamedTuple):
    """Whether the goal is reached, and whether it no longer can be."""

    success: bool
    failed: bool


class TabletopTask(ABC):
    """Bodies, their placement, the goal and a scripted expert.

    One instance serves many trials, one after the other: `place` sets every quantity a trial depends on.
    """

    variations: int
    outside: float = (
        0.0  # metres by which `place` grows its box; the named object then lies outside the usual one
    )

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    @property
    def region(self) -> Workspace:
        """The box that framed cameras aim at: where the task happens."""
        return self.workspace

    @abstractmethod
    def bodies(self) -> str:
        """MJCF of the task's bodies."""

    def assets(self) -> str:
        """MJCF of materials the bodies use."""
        return ""

    def named_place(self, rng: np.random.Generator, box: Workspace) -> Float[np.ndarray, "3"]:
        """A point for the object to be acted on: in the box, or around it where `outside` says so."""
        if not self.outside:
            return box.sample(rng)
        wide = box.widened(self.outside)
        return draw(lambda: wide.sample(rng), lambda point: not box.contains(point), "place outside the box")

    @abstractmethod
    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        """Draw a scene. The world has just been reset, its arm is at home."""

    @abstractmethod
    def random_start(self, world: World, rng: np.random.Generator) -> Pose:
        """A pose of the tip from which the expert can begin, away from the objects of the present scene."""

    @abstractmethod
    def instructions(self, variation: int) -> tuple[str, ...]:
        """Phrasings of the command."""

    @abstractmethod
    def unseen_instructions(self, variation: int) -> tuple[str, ...]:
        """Phrasings that demonstrations never have."""

    @abstractmethod
    def status(self, world: World) -> Status:
        """Judge the present state; called once before the first control step and once after each."""

    @abstractmethod
    def expert(self, world: World) -> Iterator[Float[np.ndarray, "8"]]:
        """Actions that solve the task from the present state on."""

    @abstractmethod
    def diagnostics(self, world: World) -> Mapping[str, float]:
        """Figures that say how far the trial came."""


def draw(sample: Callable[[], T], accept: Callable[[T], bool], what: str) -> T:
    """Sample until accepted.

    Raises:
        RuntimeError: nothing was accepted in 2,000 draws, as in a workspace too small for its objects.
    """
    for _ in range(_ATTEMPTS):
        value = sample()
        if accept(value):
            return value
    raise CannotContinue(
        f"no {what} found in {_ATTEMPTS} draws: the workspace is too small for the task's objects"
    )


def above(rng: np.random.Generator, workspace: Workspace, low: float, high: float) -> Pose:
    """A pose over the workspace between two heights in metres, the hand about pointing down."""
    x, y, _ = workspace.sample(rng)
    return Pose(np.array([x, y, rng.uniform(low, high)]), tilted(rng, motion.DOWN))


def tilted(rng: np.random.Generator, quaternion: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4"]:
    """An orientation turned by up to 10 degrees about a random axis."""
    axis = rng.normal(size=3)
    return motion.turned(quaternion, axis / np.linalg.norm(axis), rng.uniform(0, _TILT))

"""Pick up the cup of the named colour; another one stands beside it."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float

from benchmarks.simulators.tabletop import expert_motions as motion
from benchmarks.simulators.tabletop.camera_rigs import Workspace
from benchmarks.simulators.tabletop.kinematics import Pose
from benchmarks.simulators.tabletop.physics_world import World
from benchmarks.simulators.tabletop.robot_tasks.base import Status, TabletopTask, above, draw
from benchmarks.simulators.tabletop.robot_tasks.reach_target import COLOURS
from benchmarks.simulators.tabletop.scene import TABLE_TOP

HEIGHT, WIDTH = 0.09, 0.06  # metres, outside
LIFTED = 0.1  # metres above where it stood
_WALL = 0.006
_SIDES = 8
_CUPS = 2
_APART = 0.16  # metres between axes: the open hand fits around one without touching the other
_PLACES = Workspace(low=(0.12, -0.22, TABLE_TOP), high=(0.38, 0.22, TABLE_TOP))
_TEMPLATES = (
    "pick up the {} cup",
    "grasp the {} cup and lift it",
    "lift the {} cup off the table",
    "take the {} mug and raise it",
    "grab the {} cup",
)
_UNSEEN = (
    "raise the cup that is {}",
    "the mug to be lifted is the {} one",
    "hold the {} cup in the air",
)


class PickUpCup(TabletopTask):
    """Success: the named cup over 10 cm above its place and touched by both fingers. Failure: the other is.

    The variation is the named colour. The grasp is held by friction.
    """

    variations = len(COLOURS)

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self._stood = np.full(_CUPS, TABLE_TOP)
        self._best = 0.0

    @property
    def region(self) -> Workspace:
        """The table where cups stand, up to where they are lifted."""
        return Workspace(_PLACES.low, (*_PLACES.high[:2], TABLE_TOP + 0.3))

    def bodies(self) -> str:
        """Two hollow cups, each of a bottom and eight walls; a body's origin is the middle of its bottom."""
        return "".join(_cup(f"cup{i}") for i in range(_CUPS))

    def assets(self) -> str:
        """One material per cup."""
        return "".join(f'<material name="cup{i}" emission="0.25" specular="0.1"/>' for i in range(_CUPS))

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        """Draw places, turns and the other colour."""
        places = draw(
            lambda: np.stack([self.named_place(rng, _PLACES), _PLACES.sample(rng)]),
            lambda drawn: bool(np.linalg.norm(drawn[0] - drawn[1]) > _APART),
            "placement of cups",
        )
        other = rng.choice([index for index in range(len(COLOURS)) if index != variation])
        for i, colour in enumerate((variation, other)):
            half = rng.uniform(-math.pi, math.pi) / 2
            joint = world.data.joint(f"cup{i}")
            joint.qpos[:] = [*places[i], math.cos(half), 0, 0, math.sin(half)]
            world.model.mat_rgba[world.model.material(f"cup{i}").id, :3] = list(COLOURS.values())[colour]
        self._stood, self._best = places[:, 2], 0.0

    def random_start(self, world: World, rng: np.random.Generator) -> Pose:
        """Above the cups."""
        return above(rng, self.workspace, TABLE_TOP + 0.22, TABLE_TOP + 0.5)

    def instructions(self, variation: int) -> tuple[str, ...]:
        """Phrasings with the colour's name."""
        return tuple(template.format(list(COLOURS)[variation]) for template in _TEMPLATES)

    def unseen_instructions(self, variation: int) -> tuple[str, ...]:
        """Other phrasings."""
        return tuple(template.format(list(COLOURS)[variation]) for template in _UNSEEN)

    def status(self, world: World) -> Status:
        """Which cup is held up, if any."""
        self._best = max(self._best, float(self._lifts(world)[0]))
        named, other = (self._held_up(world, i) for i in range(_CUPS))
        return Status(success=named, failed=other)

    def expert(self, world: World) -> Iterator[Float[np.ndarray, "8"]]:
        """Over the cup, down around its wall, close, lift."""
        x, y, z = world.data.body("cup0").xpos
        grasp, over, lifted = (
            Pose(np.array([x, y, z + height]), motion.DOWN)
            for height in (HEIGHT - 0.025, HEIGHT + 0.1, HEIGHT + 0.16)
        )
        start = world.tip()
        legs = [
            motion.Leg(over, 1.0, motion.duration(start, over, 0.35, 0.8, 1.6)),
            motion.Leg(grasp, 1.0, 0.7),
            motion.Leg(grasp, 0.0, 0.5),
            motion.Leg(lifted, 0.0, 1.0),
            motion.Leg(lifted, 0.0, 0.2),
        ]
        return motion.through(start, legs, world.control_hz)

    def diagnostics(self, world: World) -> Mapping[str, float]:
        """Metres the named cup was raised at most; whether any cup is held up."""
        return {
            "highest_lift_m": self._best,
            "any_cup": float(any(self._held_up(world, i) for i in range(_CUPS))),
        }

    def _lifts(self, world: World) -> Float[np.ndarray, "n"]:
        return np.array([world.data.body(f"cup{i}").xpos[2] for i in range(_CUPS)]) - self._stood

    def _held_up(self, world: World, cup: int) -> bool:
        high = self._lifts(world)[cup] > LIFTED
        return bool(high) and all(
            world.touches(finger, f"cup{cup}") for finger in ("finger_left", "finger_right")
        )


def _cup(name: str) -> str:
    """MJCF of a cup: walls on an octagon, so that a finger meets a face or an edge."""
    middle = WIDTH / 2 - _WALL / 2  # of a wall, from the axis
    half = middle * math.tan(math.pi / _SIDES) + _WALL / 4
    walls = "".join(
        f'<geom type="box" material="{name}" mass="0.01" condim="4" friction="1 0.05 0.0005" '
        f'pos="{middle * math.cos(angle):.6f} {middle * math.sin(angle):.6f} {HEIGHT / 2}" '
        f'euler="0 0 {angle:.6f}" size="{_WALL / 2} {half:.6f} {HEIGHT / 2}"/>'
        for angle in (2 * math.pi * side / _SIDES for side in range(_SIDES))
    )
    bottom = (
        f'<geom type="cylinder" material="{name}" mass="0.03" pos="0 0 {_WALL / 2}" '
        f'size="{middle} {_WALL / 2}"/>'
    )
    return f'<body name="{name}"><freejoint name="{name}"/>{walls}{bottom}</body>'

"""Close the lid of an open laptop."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float

from benchmarks.simulators.tabletop import expert_motions as motion
from benchmarks.simulators.tabletop.camera_rigs import Workspace
from benchmarks.simulators.tabletop.kinematics import Pose
from benchmarks.simulators.tabletop.physics_world import World
from benchmarks.simulators.tabletop.robot_tasks.base import Status, TabletopTask, above
from benchmarks.simulators.tabletop.scene import TABLE_TOP

CLOSED_BY = 1.79  # radians the lid must turn, as in RLBench
OPEN = 1.95  # radians between lid and keyboard at the start
_DEEP, _WIDE, _THICK = 0.18, 0.24, 0.012  # metres of base and lid
# Of the middle of the base; nearer or farther the lid's back is out of reach for some turns.
_PLACES = Workspace(low=(0.19, -0.12, TABLE_TOP), high=(0.29, 0.12, TABLE_TOP))
_COLOURS: Mapping[str, tuple[float, float, float]] = {
    "silver": (0.75, 0.77, 0.8),
    "black": (0.16, 0.16, 0.18),
}
_TEMPLATES = (
    "close the laptop lid",
    "shut the {} laptop",
    "fold the {} laptop closed",
    "push the lid of the {} laptop down",
)
_UNSEEN = (
    "the {} laptop should be closed",
    "bring the screen of the {} laptop down",
    "lower the {} laptop's lid",
)


class CloseLaptopLid(TabletopTask):
    """Success: the lid turned by more than 1.79 radians of the 1.95 by which it stood open.

    The variation is the laptop's colour. It stands anywhere within reach, turned by any angle.
    """

    variations = len(_COLOURS)

    @property
    def region(self) -> Workspace:
        """The laptop with its lid up."""
        return Workspace((0.02, -0.26, TABLE_TOP), (0.44, 0.26, TABLE_TOP + 0.2))

    def bodies(self) -> str:
        """Base and lid; the body's origin is the middle of the hinge, x towards the keys."""
        return f"""
<body name="laptop" pos="0.2 0 {TABLE_TOP}">
  <geom type="box" material="laptop" pos="{_DEEP / 2} 0 {-_THICK / 2}"
        size="{_DEEP / 2} {_WIDE / 2} {_THICK / 2}"/>
  <geom class="visual" type="box" pos="{_DEEP / 2 - 0.02} 0 0.0005" size="0.05 0.105 0.001"
        rgba="0.3 0.3 0.33 1"/>
  <body name="lid" gravcomp="1">
    <joint name="lid" axis="0 -1 0" range="0 2.2" damping="0.02" frictionloss="0.08"/>
    <geom name="lid" type="box" material="laptop" pos="{_DEEP / 2} 0 {_THICK / 2}" mass="0.3"
          size="{_DEEP / 2} {_WIDE / 2} {_THICK / 2 - 0.001}"/>
    <geom class="visual" type="box" pos="{_DEEP / 2} 0 0.0005" size="0.075 0.105 0.001"
          rgba="0.25 0.5 0.75 1"/>
  </body>
</body>"""

    def assets(self) -> str:
        """The laptop's material."""
        return '<material name="laptop" emission="0.1" specular="0.2"/>'

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        """Draw place and turn."""
        yaw, middle = rng.uniform(-math.pi, math.pi), self.named_place(rng, _PLACES)
        keys = np.array([math.cos(yaw), math.sin(yaw), 0.0])
        laptop = world.model.body("laptop")
        laptop.pos[:] = middle - _DEEP / 2 * keys + (0, 0, _THICK)
        laptop.quat[:] = (math.cos(yaw / 2), 0, 0, math.sin(yaw / 2))
        world.data.joint("lid").qpos[0] = OPEN
        world.model.mat_rgba[world.model.material("laptop").id, :3] = list(_COLOURS.values())[variation]

    def random_start(self, world: World, rng: np.random.Generator) -> Pose:
        """Above the lid."""
        return above(rng, self.workspace, TABLE_TOP + 0.38, TABLE_TOP + 0.55)

    def instructions(self, variation: int) -> tuple[str, ...]:
        """Phrasings, some with the colour."""
        return tuple(template.format(list(_COLOURS)[variation]) for template in _TEMPLATES)

    def unseen_instructions(self, variation: int) -> tuple[str, ...]:
        """Other phrasings."""
        return tuple(template.format(list(_COLOURS)[variation]) for template in _UNSEEN)

    def status(self, world: World) -> Status:
        """How far the lid was turned."""
        return Status(success=OPEN - self._angle(world) > CLOSED_BY, failed=False)

    def expert(self, world: World) -> Iterator[Float[np.ndarray, "8"]]:
        """Behind the lid's upper edge, gripper closed and across the lid, then around the hinge."""
        start, angle = world.tip(), self._angle(world)
        behind = self._beside_lid(world, angle + 0.25)
        high = Pose(behind.position + np.array([0, 0, 0.12]), behind.quaternion)
        arrive = [
            motion.Leg(high, 0.0, motion.duration(start, high, 0.3, 0.8, 2.0)),
            motion.Leg(behind, 0.0, 0.6),
        ]
        yield from motion.through(start, arrive, world.control_hz)
        steps = math.ceil(2.2 * world.control_hz)
        for step in range(1, steps + 1):
            turned = (angle + 0.25) * (1 - motion.min_jerk(step / steps))
            yield motion.action(self._beside_lid(world, turned), 0.0)
        shut = self._beside_lid(world, 0.0)
        yield from motion.through(shut, [motion.Leg(shut, 0.0, 0.2)], world.control_hz)

    def diagnostics(self, world: World) -> Mapping[str, float]:
        """Radians by which the lid still stands open."""
        return {"still_open_rad": self._angle(world)}

    def _angle(self, world: World) -> float:
        return float(world.data.joint("lid").qpos[0])

    def _beside_lid(self, world: World, angle: float) -> Pose:
        """The tip at the back of a lid at that angle, by its free edge, the fingers' axis along the hinge."""
        laptop = world.data.body("laptop")
        keys, across, up = laptop.xmat.reshape(3, 3).T
        along = math.cos(angle) * keys + math.sin(angle) * up
        outward = -math.sin(angle) * keys + math.cos(angle) * up
        position = laptop.xpos + 0.9 * _DEEP * along + (_THICK + 0.009) * outward
        yaw = math.atan2(-across[0], across[1])  # turns the world's y axis onto the hinge
        yaw = (yaw + math.pi / 2) % math.pi - math.pi / 2  # the gripper looks the same turned by half a turn
        return Pose(position, motion.turned(motion.DOWN, np.array([0.0, 0.0, 1.0]), yaw))

"""Push the named drawer of three shut; a lower one that stands out too is to be left alone."""

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

DRAWERS = ("bottom", "middle", "top")
OPEN, CLOSED_BY = 0.1, 0.08  # metres: how far drawers stand out, and how far the named one must be pushed
DISTURBED = 0.03  # metres by which another drawer may be pushed by mistake
_TALL, _WIDE, _DEEP = 0.085, 0.14, 0.2  # metres of one drawer
_YAW = math.radians(60)
_PITCH = math.radians(
    10
)  # the hand leans back, so that the fingertips lead and the knuckles clear upper drawers
# Of the cabinet's front, at its foot.
# Cabinets are narrow and stand anywhere within reach, so that the mean demonstration misses nearly all.
_PLACES = Workspace(low=(0.28, -0.22, TABLE_TOP), high=(0.44, 0.22, TABLE_TOP))
_TEMPLATES = (
    "close the {} drawer",
    "push the {} drawer shut",
    "shut the {} drawer",
    "slide the {} drawer in",
)
_UNSEEN = (
    "the {} drawer should be closed",
    "press the {} drawer back into the cabinet",
    "make the {} drawer shut",
)


class CloseDrawer(TabletopTask):
    """Success: the named drawer pushed in by more than 8 of the 10 cm by which it stood out.

    The variation names the drawer. A drawer below it, if there is one, stands out too, and the trial has
    failed once that is pushed in by 3 cm. The cabinet faces the robot, turned by up to 60 degrees.
    """

    variations = len(DRAWERS)

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self._drawer = 0
        self._other: int | None = None

    @property
    def region(self) -> Workspace:
        """The cabinet with its drawer out."""
        return Workspace((0.1, -0.32, TABLE_TOP), (0.6, 0.32, TABLE_TOP + 0.3))

    def bodies(self) -> str:
        """A cabinet whose front lies in its y-z plane, drawers sliding out along -x."""
        tall, deep, wide = len(DRAWERS) * _TALL, _DEEP, _WIDE
        shell = 'rgba="0.45 0.33 0.24 1"'
        sides = "".join(
            f'<geom type="box" pos="{deep / 2} {sign * (wide / 2 + 0.006)} {tall / 2}" '
            f'size="{deep / 2} 0.005 {tall / 2}" {shell}/>'
            for sign in (-1, 1)
        )
        return f"""
<body name="cabinet" pos="0.4 0 {TABLE_TOP}">
  {sides}
  <geom type="box" pos="{deep / 2} 0 {tall + 0.006}" size="{deep / 2} {wide / 2 + 0.011} 0.005" {shell}/>
  <geom type="box" pos="{deep + 0.006} 0 {tall / 2}" size="0.005 {wide / 2} {tall / 2}" {shell}/>
  {"".join(_drawer(i) for i in range(len(DRAWERS)))}
</body>"""

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        """Draw the cabinet's place and turn; pull the named drawer and one below it out."""
        yaw = rng.uniform(-_YAW, _YAW)
        cabinet = world.model.body("cabinet")
        cabinet.pos[:] = self.named_place(rng, _PLACES)
        cabinet.quat[:] = (math.cos(yaw / 2), 0, 0, math.sin(yaw / 2))
        self._drawer, self._other = variation, int(rng.integers(variation)) if variation else None
        for i in range(len(DRAWERS)):
            world.data.joint(f"drawer{i}").qpos[0] = OPEN if i in (self._drawer, self._other) else 0.0

    def random_start(self, world: World, rng: np.random.Generator) -> Pose:
        """Above the cabinet, on the robot's side of it."""
        box = Workspace((0.08, -0.25, TABLE_TOP), (0.25, 0.25, TABLE_TOP))
        return above(rng, box, TABLE_TOP + 0.4, TABLE_TOP + 0.6)

    def instructions(self, variation: int) -> tuple[str, ...]:
        """Phrasings with the drawer's name."""
        return tuple(template.format(DRAWERS[variation]) for template in _TEMPLATES)

    def unseen_instructions(self, variation: int) -> tuple[str, ...]:
        """Other phrasings."""
        return tuple(template.format(DRAWERS[variation]) for template in _UNSEEN)

    def status(self, world: World) -> Status:
        """How far the named drawer was pushed, and the other one."""
        pushed = OPEN - self._out(world, self._drawer)
        disturbed = 0.0 if self._other is None else OPEN - self._out(world, self._other)
        return Status(success=pushed > CLOSED_BY, failed=disturbed > DISTURBED)

    def expert(self, world: World) -> Iterator[Float[np.ndarray, "8"]]:
        """Before the drawer's face, gripper closed, then along its rails."""
        outward = -world.data.body("cabinet").xmat.reshape(3, 3)[:, 0]
        front = world.data.geom(f"face{self._drawer}").xpos + 0.01 * outward
        quaternion = motion.turned(motion.DOWN, np.array([0.0, 1.0, 0.0]), -_PITCH)
        quaternion = motion.turned(
            quaternion, np.array([0.0, 0.0, 1.0]), math.atan2(-outward[1], -outward[0])
        )
        start, up = world.tip(), np.array([0.0, 0.0, 1.0])
        before, high, shut = (
            Pose(front + along * outward + rise * up, quaternion)
            for along, rise in ((0.05, 0.0), (0.08, 0.12), (-self._out(world, self._drawer) + 0.022, 0.0))
        )
        legs = [
            motion.Leg(high, 0.0, motion.duration(start, high, 0.35, 0.8, 1.6)),
            motion.Leg(before, 0.0, 0.6),
            motion.Leg(shut, 0.0, 1.2),
            motion.Leg(shut, 0.0, 0.2),
        ]
        return motion.through(start, legs, world.control_hz)

    def diagnostics(self, world: World) -> Mapping[str, float]:
        """Metres by which the named drawer still stands out."""
        return {"still_open_m": self._out(world, self._drawer)}

    def _out(self, world: World, drawer: int) -> float:
        return float(world.data.joint(f"drawer{drawer}").qpos[0])


def _drawer(index: int) -> str:
    """MJCF of a drawer: an open tray behind a face with a handle, shut at joint position 0."""
    middle, wood = (index + 0.5) * _TALL, 'rgba="0.72 0.55 0.36 1"'
    tray = "".join(
        f'<geom class="visual" type="box" pos="{_DEEP / 2} {y} {z}" '
        f'size="{_DEEP / 2 - 0.004} {half_y} {half_z}" {wood}/>'
        for y, z, half_y, half_z in (
            (0, -0.03, _WIDE / 2 - 0.008, 0.004),
            (-_WIDE / 2 + 0.012, 0, 0.004, 0.028),
            (_WIDE / 2 - 0.012, 0, 0.004, 0.028),
        )
    )
    return f"""
<body name="drawer{index}" pos="0 0 {middle}" gravcomp="1">
  <joint name="drawer{index}" type="slide" axis="-1 0 0" range="0 {OPEN + 0.02}"
         damping="8" frictionloss="1.5"/>
  <geom name="face{index}" type="box" size="0.008 {_WIDE / 2 - 0.004} {_TALL / 2 - 0.004}" mass="0.5" {wood}/>
  <geom class="visual" type="box" pos="-0.014 0 0.02" size="0.006 0.04 0.006" rgba="0.2 0.2 0.22 1"/>
  {tray}
</body>"""

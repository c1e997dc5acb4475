"""Reach the named one of three coloured spheres that float in the workspace."""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float

from benchmarks.simulators.tabletop import expert_motions as motion
from benchmarks.simulators.tabletop.camera_rigs import Workspace
from benchmarks.simulators.tabletop.kinematics import Pose
from benchmarks.simulators.tabletop.physics_world import World
from benchmarks.simulators.tabletop.robot_tasks.base import Status, TabletopTask, draw, tilted

COLOURS: Mapping[str, tuple[float, float, float]] = {
    "red": (0.9, 0.06, 0.06),
    "green": (0.05, 0.7, 0.1),
    "blue": (0.08, 0.15, 0.95),
    "yellow": (0.98, 0.88, 0.05),
    "magenta": (0.9, 0.1, 0.85),
    "cyan": (0.05, 0.85, 0.9),
}
RADIUS = 0.04  # metres
REACHED = 0.04  # metres from the sphere's centre
APART = 0.15  # metres between centres, at least
_CLEARANCE = 0.07  # metres between other spheres and the straight way, for the expert
_AWAY = 0.12  # metres between a random start and every sphere
_SPHERES = 3
_TEMPLATES = (
    "reach the {} ball",
    "touch the {} sphere",
    "move the gripper to the {} ball",
    "go to the {} target",
    "bring the hand to the {} sphere",
)
_UNSEEN = (
    "steer the tool to the ball that is {}",
    "{} is the sphere to touch",
    "make contact with the ball coloured {}",
)


class ReachTarget(TabletopTask):
    """Success: the tip within 4 cm of the named sphere's centre before it came within 4 cm of another.

    The variation is the named colour. The spheres are pictures only, nothing collides with them. Scenes are
    drawn uniformly and kept if the spheres are 15 cm apart and the straight way from the home pose to the
    named one stays 7 cm clear of the others; so are random starts.

    Attributes:
        centres: of the spheres of the present scene, metres, the named one first.
    """

    variations = len(COLOURS)

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self.centres = np.zeros((_SPHERES, 3))
        self._first: int | None = None
        self._down = np.zeros(4)

    def bodies(self) -> str:
        """Three spheres, painted and moved by `place`; a little glow keeps their colour in the shade."""
        return "".join(
            f'<body name="sphere{i}" mocap="true">'
            f'<geom class="visual" type="sphere" size="{RADIUS}" material="sphere{i}"/></body>'
            for i in range(_SPHERES)
        )

    def assets(self) -> str:
        """One material per sphere."""
        return "".join(f'<material name="sphere{i}" emission="0.4" specular="0.1"/>' for i in range(_SPHERES))

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        """Draw centres and the two other colours."""
        home, box = world.tip(), self.workspace
        self._down, self._first = home.quaternion, None
        self.centres = draw(
            lambda: np.stack([self.named_place(rng, box), *(box.sample(rng) for _ in range(_SPHERES - 1))]),
            lambda centres: _apart(centres) and _clear(home.position, centres),
            "placement of spheres",
        )
        others = [index for index in range(len(COLOURS)) if index != variation]
        colours = [variation, *rng.choice(others, _SPHERES - 1, replace=False)]
        for i, (centre, colour) in enumerate(zip(self.centres, colours, strict=True)):
            world.data.mocap_pos[i] = centre
            world.model.mat_rgba[world.model.material(f"sphere{i}").id, :3] = list(COLOURS.values())[colour]

    def random_start(self, world: World, rng: np.random.Generator) -> Pose:
        """Anywhere in the workspace, 12 cm from every sphere, the hand up to 10 degrees off its home turn."""

        def free(pose: Pose) -> bool:
            away = np.linalg.norm(self.centres - pose.position, axis=1).min() > _AWAY
            return bool(away and _clear(pose.position, self.centres))

        return draw(lambda: Pose(self.workspace.sample(rng), tilted(rng, self._down)), free, "random start")

    def instructions(self, variation: int) -> tuple[str, ...]:
        """Phrasings with the colour's name."""
        return tuple(template.format(list(COLOURS)[variation]) for template in _TEMPLATES)

    def unseen_instructions(self, variation: int) -> tuple[str, ...]:
        """Other phrasings."""
        return tuple(template.format(list(COLOURS)[variation]) for template in _UNSEEN)

    def status(self, world: World) -> Status:
        """The first sphere that the tip comes close to decides."""
        if self._first is None:
            distances = self._distances(world)
            if distances.min() < REACHED:
                self._first = int(distances.argmin())
        return Status(success=self._first == 0, failed=self._first not in (None, 0))

    def expert(self, world: World) -> Iterator[Float[np.ndarray, "8"]]:
        """Straight to the named centre in 0.8 to 1.6 s, the hand turned as at home, then 0.2 s there."""
        start, goal = world.tip(), Pose(self.centres[0].copy(), self._down)
        way = motion.Leg(goal, 1.0, motion.duration(start, goal, 0.3, 0.8, 1.6))
        return motion.through(start, [way, motion.Leg(goal, 1.0, 0.2)], world.control_hz)

    def diagnostics(self, world: World) -> Mapping[str, float]:
        """Whether any sphere was reached; whether the nearest is the named one; metres to that one now."""
        distances = self._distances(world)
        return {
            "any_sphere": float(self._first is not None),
            "nearest_is_named": float(distances.argmin() == 0),
            "final_distance_m": float(distances[0]),
        }

    def _distances(self, world: World) -> Float[np.ndarray, "n"]:
        return np.linalg.norm(self.centres - world.tip().position, axis=1)


def _apart(centres: Float[np.ndarray, "n 3"]) -> bool:
    pairs = np.linalg.norm(centres[:, None] - centres[None], axis=-1)[np.triu_indices(len(centres), 1)]
    return bool(pairs.min() >= APART)


def _clear(start: Float[np.ndarray, "3"], centres: Float[np.ndarray, "n 3"]) -> bool:
    ways = [motion.distance_to_segment(centre, start, centres[0]) for centre in centres[1:]]
    return min(ways) > _CLEARANCE

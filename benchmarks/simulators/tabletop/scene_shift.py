"""Shifted scenes of the tabletop suite: colours and distractors changed in MuJoCo's model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from benchmarks.simulators.tabletop.mujoco_graphics import mujoco
from benchmarks.simulators.tabletop.physics_world import World
from benchmarks.simulators.tabletop.scene import TABLE_TOP

PARTS = frozenset({"cameras", "light", "appearance", "distractors", "start", "layout", "instruction"})
CHANGED = ("geom_rgba", "geom_size", "mat_rgba", "tex_data")  # arrays of a model that are changed here
DISTRACTORS = 8  # at most
_HIDDEN = (0.0, 0.0, -5.0)  # where distractors are that a trial has not drawn
_CLEAR = 0.1  # metres between a distractor and the task's objects, at least
# None of the colours that instructions name.
_COLOURS = np.array(
    [
        (0.45, 0.3, 0.18),
        (0.95, 0.55, 0.1),
        (0.25, 0.25, 0.28),
        (0.4, 0.42, 0.2),
        (0.6, 0.5, 0.75),
        (0.9, 0.88, 0.8),
    ]
)


@dataclass(frozen=True)
class Extras:
    """What a model must have so that shifts can be built in it.

    Attributes:
        distractors: bodies that a trial may show.
        shadows: whether shadows can be cast; None: as the simulator is set up.
    """

    distractors: bool = False
    shadows: bool | None = None

    @classmethod
    def of(cls, drawn: Mapping[str, Any]) -> "Extras":
        """What a trial's drawn values need; the same for all trials of a shift."""
        light = drawn.get("light")
        return cls("distractors" in drawn, light and light["shadows"])

    def mjcf(self) -> str:
        """Bodies below the floor; they follow the task's own bodies."""
        shapes = ("sphere", "box", "cylinder", "capsule")
        bodies = (
            f'<body name="distractor{i}" mocap="true" pos="{" ".join(map(str, _HIDDEN))}">'
            f'<geom class="visual" type="{shapes[i % len(shapes)]}" size="0.03 0.03 0.03"/></body>'
            for i in range(DISTRACTORS)
        )
        return "".join(bodies) if self.distractors else ""


def paint(world: World, drawn: Mapping[str, Any]) -> None:
    """Colour a world's surfaces by values of `benchmarks.shifts.parts.AppearanceShift`; after placing."""
    model = world.model
    groups = _surfaces(model)
    for name in ("table", "background", "robot"):
        share, colour = drawn[name]["share"], np.array(drawn[name]["colour"])
        model.geom_rgba[groups[name], :3] = (1 - share) * model.geom_rgba[groups[name], :3] + share * colour
    share, colour = drawn["background"]["share"], np.array(drawn["background"]["colour"])
    sky = model.tex_data.reshape(-1, 3)
    sky[:] = np.round((1 - share) * sky + share * 255 * colour)
    materials = model.geom_matid[groups["objects"]]
    bare = [geom for geom, material in zip(groups["objects"], materials, strict=True) if material < 0]
    for colours, which in ((model.geom_rgba, bare), (model.mat_rgba, sorted({*materials.tolist()} - {-1}))):
        colours[which, :3] = np.minimum(colours[which, :3] * drawn["objects"], 1)


def distract(world: World, drawn: Mapping[str, Any]) -> None:
    """Put up distractors by values of `benchmarks.shifts.parts.DistractorShift`; after placing."""
    model, data, rng = world.model, world.data, np.random.default_rng(drawn["seed"])
    mujoco.mj_kinematics(model, data)
    taken = list(data.geom_xpos[_surfaces(model)["objects"], :2])
    for i in range(drawn["count"]):
        place = _free(rng, taken)
        taken.append(place)
        body = model.body(f"distractor{i}")
        geom = int(body.geomadr[0])
        model.geom_size[geom] = rng.uniform(0.02, 0.045)
        model.geom_rgba[geom, :3] = _COLOURS[rng.integers(len(_COLOURS))]
        capsule = model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE  # its size is without the caps
        height = model.geom_size[geom, 0] * (2 if capsule else 1)
        data.mocap_pos[body.mocapid[0]] = [*place, TABLE_TOP + height]


def _free(rng: np.random.Generator, taken: list[Float[np.ndarray, "2"]]) -> Float[np.ndarray, "2"]:
    """A place on the table away from the arm's base and from what is taken; the last try if all is full."""
    for _ in range(200):
        place = rng.uniform((-0.05, -0.55), (0.65, 0.55))
        if all(np.linalg.norm(place - other) > _CLEAR for other in taken):
            break
    return place


def _surfaces(model: "mujoco.MjModel") -> dict[str, list[int]]:
    """Geoms of table, background, robot and the task's own objects."""
    roots = [model.body(int(root)).name for root in model.body_rootid]
    groups: dict[str, list[int]] = {"table": [], "background": [], "robot": [], "objects": []}
    for geom in range(model.ngeom):
        root = roots[model.geom_bodyid[geom]]
        if root == "world":
            groups["background" if model.geom(geom).name == "floor" else "table"].append(geom)
        elif not root.startswith("distractor"):
            groups["robot" if root == "panda" else "objects"].append(geom)
    return groups

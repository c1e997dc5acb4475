"""Builds a shifted scene of reach_target with the adapter's world and prints what PyRep then finds, as JSON.

python -I shifted_scene_inspector.py FOLDER_OF_THE_SERVER PATH...
"""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np

folder = Path(sys.argv[1])
sys.path[:0] = sys.argv[2:]
server = module_from_spec(spec_from_file_location("server", folder / "server.py"))
server.__spec__.loader.exec_module(server)
world = server._load(str(folder / "rlbench_world.py")).World((32, 32), "planning", True)

from ai_wam_adapter import shifted_scene  # noqa: E402
from pyrep.backend import sim  # noqa: E402
from pyrep.const import ObjectType  # noqa: E402
from pyrep.objects import Dummy, Shape, VisionSensor  # noqa: E402
from pyrep.objects.light import Light  # noqa: E402
from rlbench.const import colors  # noqa: E402

RESET = {"task": "reach_target", "variation": 3, "seed": 5, "attempts": 3}


def look():
    lamps = [Light(name) for name in ("LampA", "LampB", "TaskLamp", "LampOnCamera")]
    cameras = [VisionSensor(name) for name in shifted_scene.FIXED.values()]
    shapes = sim.simGetObjectsInTree(sim.sim_handle_scene, ObjectType.SHAPE.value, 0)
    return {
        "shapes": sorted(Shape(handle).get_name() for handle in shapes),
        "lamps": [
            [one.is_on(), *one.get_diffuse(), *one.get_specular(), *one.get_matrix().ravel()] for one in lamps
        ],
        "ambient": sim.simGetArrayParameter(sim.sim_arrayparam_ambient_light),
        "cameras": [
            [*one.get_matrix().ravel(), one.get_perspective_angle(), one.get_render_mode().value]
            for one in cameras
        ],
    }


def refused(shift):
    try:
        world.reset(**RESET, shift=shift)
    except Exception as error:
        return str(error)
    return "nothing was refused"


def distances(mine, task):
    """Between a distractor and all that can be seen, along the table."""
    for one in mine:
        for other in [*mine, *(shape for shape in task if shape.is_renderable())]:
            if one != other:
                yield float(np.linalg.norm((one.get_position() - other.get_position())[:2]))


usual, before = world.reset(**RESET), look()
matrix = world.rig()["sensors"]["front"]["matrix"].copy()
matrix[0, 3] += 0.25
cameras = {"front": {"matrix": matrix, "angle": 50.0}}
gain = np.array([0.5, 0.75, 1.0])
light = {"turn": np.eye(3), "centre": np.zeros(3), "gain": gain, "shadows": False}
shift = {"cameras": cameras, "light": light, "distractors": {"count": 6, "seed": 1}}
shifted, during = world.reset(**RESET, shift=shift), look()
mine = [Shape(name) for name in during["shapes"] if name.startswith("ai_wam")]
task = Dummy("reach_target").get_objects_in_tree(object_type=ObjectType.SHAPE)
scene = sim.simGetObjectHandle.__self__
facts = {
    "before": before,
    "during": during,
    "options": [scene.things[one.get_handle()].more["options"] for one in mine],
    "touched": [bool(one.is_collidable() or one.is_measurable() or one.is_detectable()) for one in mine],
    "drawn": [bool(one.is_renderable()) for one in mine],
    "parents": [one.get_parent() for one in mine],
    "apart": min(distances(mine, task)),
    "bottoms": [float(one.get_position()[2] - one.get_bounding_box()[5]) for one in mine],
    "same_state": bool(np.array_equal(usual["state"], shifted["state"])),
    "change": shifted["change"],
    "colours": min(
        float(np.linalg.norm(np.subtract(one, other))) for one in shifted_scene.COLOURS for _, other in colors
    ),
}
genuine = sim.simSetObjectFloatParameter
sim.simSetObjectFloatParameter = lambda handle, parameter, value: genuine(handle, parameter, min(value, 0.75))
facts["refused"] = [refused({"cameras": cameras}), refused({"distractors": {"count": 400, "seed": 1}})]
sim.simSetObjectFloatParameter = genuine
world.reset(**RESET)
print(json.dumps({**facts, "after": look()}, default=float))

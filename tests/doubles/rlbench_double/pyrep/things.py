"""Cameras, lamps and shapes of the double's scene, by the names and calls of PyRep that our adapter uses."""

import enum

import numpy as np


class ObjectType(enum.Enum):
    SHAPE = 0
    LIGHT = 13


class PrimitiveShape(enum.Enum):
    CUBOID = 0
    SPHERE = 1
    CYLINDER = 2
    CONE = 3


THINGS = []  # the state of each; a handle is its place


def add(kind, name, matrix, **more):
    THINGS.append({"kind": kind, "name": name, "matrix": np.array(matrix, dtype=float), **more})
    return len(THINGS) - 1


def living(kind):
    return [thing for thing in THINGS if thing is not None and thing["kind"] == kind]


class Thing:
    def __init__(self, name_or_handle):
        found = name_or_handle
        if isinstance(found, str):
            (found,) = (i for i, thing in enumerate(THINGS) if thing and thing["name"] == name_or_handle)
        self.handle, self.own = found, THINGS[found]

    def get_name(self):
        return self.own["name"]

    def set_name(self, name):
        assert all(thing is None or thing["name"] != name for thing in THINGS)
        self.own["name"] = name

    def get_matrix(self):
        return self.own["matrix"].copy()

    def set_matrix(self, matrix):
        self.own["matrix"] = np.array(matrix, dtype=float)

    def get_position(self):
        return self.own["matrix"][:3, 3].copy()

    def get_pose(self):
        return np.append(self.get_position(), quaternion(self.own["matrix"][:3, :3]))

    def set_pose(self, pose, reset_dynamics=True):
        self.own["matrix"][:3, 3], self.own["matrix"][:3, :3] = pose[:3], rotation(pose[3:])

    def get_parent(self):
        return None

    def remove(self):
        THINGS[self.handle] = None


class VisionSensor(Thing):
    def get_perspective_angle(self):
        return self.own["angle"]

    def set_perspective_angle(self, angle):
        self.own["angle"] = angle

    def get_render_mode(self):
        return self.own["mode"]

    def set_render_mode(self, mode):
        self.own["mode"] = mode

    def get_far_clipping_plane(self):
        return 3.5


class Light(Thing):
    def is_on(self):
        return self.own["on"]

    def get_diffuse(self):
        return np.array(self.own["diffuse"])

    def set_diffuse(self, colour):
        self.own["diffuse"] = list(colour)

    def get_specular(self):
        return np.array(self.own["specular"])

    def set_specular(self, colour):
        self.own["specular"] = list(colour)


class Shape(Thing):
    @staticmethod
    def create(type, size, static, respondable, position, color):
        assert isinstance(type, PrimitiveShape)
        assert (static, respondable) == (True, False)
        matrix = np.eye(4)
        matrix[:3, 3] = position
        return Shape(add("shape", f"Shape{len(THINGS)}", matrix, half=np.array(size) / 2, colour=color))

    def get_bounding_box(self):
        return [side * half for half in self.own["half"] for side in (-1, 1)]

    def is_renderable(self):
        return "colour" in self.own

    def set_collidable(self, value):
        self.own["collidable"] = value

    def set_measurable(self, value):
        self.own["measurable"] = value

    def set_detectable(self, value):
        self.own["detectable"] = value


class Dummy:
    """The root of a task."""

    def __init__(self, name):
        self.name = name

    def get_objects_in_tree(self, object_type):
        assert object_type is ObjectType.SHAPE
        return [Shape(shape["name"]) for shape in living("shape") if shape.get("task") == self.name]


class ForeignArrays:
    @staticmethod
    def new(kind, values):
        assert kind == "float[3]"
        return tuple(values)


class sim:
    ffi, sim_handle_scene, sim_arrayparam_ambient_light = ForeignArrays, -7, 5
    ambient = (0.25, 0.25, 0.25)

    @staticmethod
    def simGetObjectsInTree(root, kind, options):
        assert (root, kind) == (sim.sim_handle_scene, ObjectType.LIGHT.value)
        return [i for i, thing in enumerate(THINGS) if thing is not None and thing["kind"] == "light"]

    @staticmethod
    def simGetArrayParameter(parameter):
        return list(sim.ambient)

    @staticmethod
    def simSetArrayParameter(parameter, values):
        sim.ambient = values


def level():
    """Light of each colour, 1 in the usual scene: a lamp shines along its z axis."""
    lit = np.array(sim.ambient)
    for lamp in living("light"):
        lit = lit + lamp["on"] * max(0.0, -lamp["matrix"][2, 2]) * np.array(lamp["diffuse"])
    return lit


def quaternion(turn):
    """x y z w: the eigenvector of Bar-Itzhack's symmetric matrix."""
    skew = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    k = np.empty((4, 4))
    k[:3, :3], k[:3, 3], k[3, :3], k[3, 3] = (
        turn + turn.T - np.eye(3) * np.trace(turn),
        skew,
        skew,
        np.trace(turn),
    )
    return np.linalg.eigh(k)[1][:, -1]


def rotation(quaternion):
    x, y, z, w = quaternion / np.linalg.norm(quaternion)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


DOWN = np.diag([1.0, -1.0, -1.0, 1.0])
add("light", "LampA", DOWN, on=1, diffuse=[0.75] * 3, specular=[0.5] * 3)
add("light", "LampB", DOWN, on=0, diffuse=[0.5] * 3, specular=[0.5] * 3)

"""What the fake of CoppeliaSim's scene looks like: lamps, shapes of its own making, discs for pictures."""

import math

import numpy as np
import panda_kinematics as panda

_SHAPE, _LIGHT = 0, 13
EVERY_PROPERTY = 0x1 | 0x2 | 0x1F0 | 0x200  # collidable, measurable, detectable, renderable
_RENDERABLE = 0x200
_GREY = 0.2  # of the background in the usual light
_DOWN = panda.place((0.0, 0.0, 3.0), panda.turn([1, 0, 0], math.pi))  # a lamp shines along its z axis


class Looks:
    """Part of `coppeliasim_fake.Scene`."""

    def add_lamps(self):
        """One lamp that is on and, with the ambient light, makes colours what they are; one that is off."""
        self.ambient = [0.25] * 3
        self.add_lamp("LampA", -1, on=1, diffuse=0.75)
        self.add_lamp("LampB", -1, on=0, diffuse=0.5)
        self.add_lamp("LampOnCamera", self.simGetObjectHandle("cam_front"), on=1, diffuse=0.0)

    def add_lamp(self, name, parent, on, diffuse):
        self.add(name, _LIGHT, parent, _DOWN, on=on, diffuse=[diffuse] * 3, specular=[0.5] * 3)

    # --- lamps ---
    def simGetLightParameters(self, handle):
        lamp = self.things[handle].more
        return lamp["on"], list(lamp["diffuse"]), list(lamp["specular"])

    def simSetLightParameters(self, handle, state, diffusePart=None, specularPart=None):
        lamp = self.things[handle].more
        lamp["on"] = int(state)
        for name, values in (("diffuse", diffusePart), ("specular", specularPart)):
            if values is not None:
                assert isinstance(values, list)  # all that cffi makes an array of
                lamp[name] = [float(np.float32(value)) for value in values]

    def simGetArrayParameter(self, parameter):
        assert parameter == self.sim.sim_arrayparam_ambient_light
        return list(self.ambient)

    def simSetArrayParameter(self, parameter, values):
        assert parameter == self.sim.sim_arrayparam_ambient_light
        assert self.sim.ffi.typeof(values).cname == "float[3]"  # C's argument is an address of any type
        self.ambient = list(values)

    # --- shapes ---
    def simCreatePureShape(self, kind, options, size, mass, precision):
        half, name = [edge / 2 for edge in size], ("Cuboid", "Sphere", "Cylinder", "Cone")[kind]
        more = {"box": half, "radius": half[0], "colour": [1.0] * 3, "special": EVERY_PROPERTY}
        return self.add(f"{name}{self.next}", _SHAPE, -1, np.eye(4), options=options, **more)

    def simSetObjectName(self, handle, name):
        assert not any(thing.name == name for thing in self.things.values())
        self.things[handle].name = name

    def simSetShapeColor(self, handle, name, component, colour):
        self.things[handle].more["colour"] = list(colour)

    def simGetObjectSpecialProperty(self, handle):
        return self.things[handle].more.get("special", 0)

    def simSetObjectSpecialProperty(self, handle, value):
        self.things[handle].more["special"] = value

    # --- pictures ---
    def simHandleVisionSensor(self, handle):
        self.things[handle].more["drawn"] = self.draw(handle)

    def simGetVisionSensorResolution(self, handle):
        return list(self.things[handle].more["size"])

    def simGetVisionSensorImage(self, handle, resolution):
        image = self.things[handle].more["drawn"]
        assert list(image.shape[:2]) == [resolution[1], resolution[0]]
        return image

    def draw(self, handle):
        width, height = self.things[handle].more["size"]
        image = np.full((height, width, 3), _GREY, np.float32)
        pose, degrees = self.world(handle), self.things[handle].more["degrees"]
        focal = max(width, height) / 2 / math.tan(math.radians(degrees) / 2)
        rows, columns = np.mgrid[:height, :width] + 0.5
        balls = []
        for ball in self.things.values():
            if "colour" in ball.more and ball.more["special"] & _RENDERABLE:
                x, y, z = pose[:3, :3].T @ ((self.world(ball.parent) @ ball.pose)[:3, 3] - pose[:3, 3])
                balls.append((z, x, y, ball.more.get("radius", 0.025), ball.more["colour"]))
        for z, x, y, radius, colour in sorted(balls, key=lambda ball: -ball[0]):
            if z > 0:  # x points left and y up
                seen = np.hypot(columns - width / 2 + focal * x / z, rows - height / 2 + focal * y / z)
                image[seen < focal * radius / z] = colour
        return np.minimum(image * self.level().astype(np.float32), 1)

    def level(self):
        """Light of each colour that falls on the table, 1 in the usual scene."""
        level = np.array(self.ambient)
        for handle, thing in self.things.items():
            if thing.kind == _LIGHT and thing.more["on"]:
                level = level + max(0.0, -self.world(handle)[2, 2]) * np.array(thing.more["diffuse"])
        return level

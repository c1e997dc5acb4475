"""The few names of PyRep that our adapter imports."""

import enum
import sys
import types

from pyrep import things


class RenderMode(enum.Enum):
    OPENGL = 0
    OPENGL3 = 7


class ConfigurationPathError(Exception):
    pass


class IKError(Exception):
    pass


def register(package, names):
    """Make `package.module` importable for every module named, with these contents."""
    for module, contents in names.items():
        made = types.ModuleType(f"{package}.{module}")
        made.__dict__.update({value.__name__: value for value in contents})
        sys.modules[made.__name__] = made


register(
    "pyrep",
    {
        "backend": [things.sim],
        "const": [RenderMode, things.ObjectType, things.PrimitiveShape],
        "errors": [ConfigurationPathError, IKError],
        "objects.dummy": [things.Dummy],
        "objects.light": [things.Light],
        "objects.shape": [things.Shape],
        "objects.vision_sensor": [things.VisionSensor],
    },
)
sys.modules["pyrep.objects"] = types.ModuleType("pyrep.objects")

"""The few names of PyRep that our adapter imports."""

import enum
import sys
import types


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


register("pyrep", {"const": [RenderMode], "errors": [ConfigurationPathError, IKError]})

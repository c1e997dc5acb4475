"""Chooses the OpenGL platform for MuJoCo and explains what prevents drawing; MuJoCo is not imported."""

import ctypes
import sys
from collections.abc import Mapping, Sequence

_EGL_LIBRARY, _OSMESA_LIBRARIES = "libEGL.so.1", ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")
_DISABLED = ("disable", "disabled", "off", "false", "0")  # MuJoCo's own words for "no graphics"
_WINDOWS = ("", "enable", "enabled", "on", "true", "1", "glfw", "glx")  # those that need a display
_OF_SYSTEM = {"linux": ("egl", "osmesa"), "darwin": ("cgl",), "win32": ("wgl",)}
_KNOWN = (*_DISABLED, *_WINDOWS, *_OF_SYSTEM.get(sys.platform, ()))
_DEVICE = "MUJOCO_EGL_DEVICE_ID"
_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")


def egl_devices() -> int:
    """Number of devices EGL offers; 0 where the library or the device query is missing."""
    try:
        egl = ctypes.CDLL(_EGL_LIBRARY)
    except OSError:
        return 0
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return 0
    signature = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))
    query = signature(address)
    count = ctypes.c_int(0)
    return count.value if query(0, None, ctypes.byref(count)) else 0


def osmesa() -> bool:
    """Whether OSMesa can be loaded."""
    return loads_any(_OSMESA_LIBRARIES)


def loads_any(libraries: Sequence[str]) -> bool:
    """Whether the dynamic linker finds one of the shared libraries."""
    for library in libraries:
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return True
    return False


def choose_platform(egl_devices: int, osmesa: bool) -> str:
    """The best value of MUJOCO_GL on a Linux machine without a display.

    Args:
        egl_devices: how many devices EGL offers.
        osmesa: whether OSMesa can be loaded.

    Returns:
        "egl", "osmesa" or, with neither, "disable": physics works then, and drawing raises an error that
            names the packages to install.
    """
    if egl_devices > 0:
        return "egl"
    return "osmesa" if osmesa else "disable"


def platform_for_import(variables: Mapping[str, str]) -> str | None:
    """The value that MUJOCO_GL must have while MuJoCo is imported; None where it may stay as it is.

    "disable" where MuJoCo cannot draw: the import would fail otherwise, and physics with it.

    Args:
        variables: of the environment, as the user set them.
    """
    found = egl_devices(), osmesa()
    if obstacle(variables, *found):
        return "disable"
    return choose_platform(*found) if headless(variables) and not _asked(variables) else None


def obstacle(variables: Mapping[str, str], egl_devices: int, osmesa: bool) -> str | None:
    """Why MuJoCo cannot draw with these variables, as far as that is known beforehand.

    Args:
        variables: of the environment, as the user set them.
        egl_devices: how many devices EGL offers.
        osmesa: whether OSMesa can be loaded.
    """
    asked, no_display = _asked(variables), headless(variables)
    said = f"MUJOCO_GL is {asked!r}"
    if asked not in _KNOWN:
        return f"{said}, which MuJoCo does not know"
    if asked in _DISABLED:
        return f"{said}, which turns graphics off"
    if asked == "egl" and not egl_devices:
        return f"{said}, and EGL offers no device"
    if asked == "osmesa" and not osmesa:
        return f"{said}, and its library (libOSMesa) cannot be loaded"
    if no_display and not (asked or egl_devices or osmesa):
        return "there is no display (DISPLAY, WAYLAND_DISPLAY) and neither EGL nor OSMesa could be loaded"
    used = asked or (choose_platform(egl_devices, osmesa) if no_display else "")
    other = variables.get("PYOPENGL_PLATFORM")
    if used in ("egl", "osmesa") and other not in (None, "", used):
        return f"PYOPENGL_PLATFORM is {other!r} and MuJoCo draws with {used}"
    if used == "egl" and not _is_number(device := variables.get(_DEVICE, "0")):
        return f"{_DEVICE} is {device!r}, expected the number of a device"
    return None


def way_out(variables: Mapping[str, str], egl_devices: int, osmesa: bool) -> str:
    """What the user can do on this machine to draw; empty where its best platform is in use already.

    Args:
        variables: of the environment, as the user set them.
        egl_devices: how many devices EGL offers.
        osmesa: whether OSMesa can be loaded.
    """
    platform = choose_platform(egl_devices, osmesa)
    if platform == "disable":
        return (
            "install EGL or OSMesa, for example on Debian or Ubuntu `apt-get install libegl1 libegl-mesa0` "
            "(EGL) or `apt-get install libosmesa6` (OSMesa), and leave MUJOCO_GL and PYOPENGL_PLATFORM unset"
        )
    clash = variables.get("PYOPENGL_PLATFORM") not in (None, "", platform)
    used = _asked(variables) or (platform if headless(variables) else "")
    steps = [f"set MUJOCO_GL={platform}"] * (used != platform) + ["unset PYOPENGL_PLATFORM"] * clash
    steps += [f"unset {_DEVICE}"] * (platform == "egl" and not _is_number(variables.get(_DEVICE, "0")))
    return " and ".join(steps)


def _is_number(device: str) -> bool:
    try:
        int(device)
    except ValueError:
        return False
    return True


def _asked(variables: Mapping[str, str]) -> str:
    return variables.get("MUJOCO_GL", "").lower().strip()


def headless(variables: Mapping[str, str]) -> bool:
    """Whether this is a Linux machine without a display, by its environment variables."""
    return sys.platform == "linux" and not any(variables.get(name) for name in _DISPLAYS)

"""MuJoCo with a graphics platform chosen first: whoever needs `mujoco` in this package imports it from here.

MuJoCo reads MUJOCO_GL once, while it is imported, so the choice cannot be made later.
"""

import atexit
import ctypes
import os
import sys
import weakref
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

_EGL_LIBRARY, _OSMESA_LIBRARIES = "libEGL.so.1", ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")
_DISABLED = ("disable", "disabled", "off", "false", "0")  # MuJoCo's own words for "no graphics"
NO_GRAPHICS = (
    "MuJoCo cannot draw: there is no display (DISPLAY, WAYLAND_DISPLAY) and neither EGL nor OSMesa could be "
    "loaded. Install one of them, for example on Debian or Ubuntu `apt-get install libegl1 libegl-mesa0` "
    "(EGL) or `apt-get install libosmesa6` (OSMesa), and leave MUJOCO_GL unset."
)


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
    """What MUJOCO_GL should say on a Linux machine without a display.

    Args:
        egl_devices: how many devices EGL offers.
        osmesa: whether OSMesa can be loaded.

    Returns:
        "egl", "osmesa" or, with neither, "disable": physics works then, and drawing says what to install.
    """
    if egl_devices > 0:
        return "egl"
    return "osmesa" if osmesa else "disable"


def _headless_linux() -> bool:
    return sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if "MUJOCO_GL" not in os.environ and "mujoco" not in sys.modules and _headless_linux():
    os.environ["MUJOCO_GL"] = choose_platform(egl_devices(), loads_any(_OSMESA_LIBRARIES))

import mujoco  # noqa: E402  (the variable above must be set first)

from ai_wam.errors import CannotContinue  # noqa: E402


class Pictures:
    """Draws a model's cameras off screen. Belongs to the thread that made it.

    Raises:
        RuntimeError: no OpenGL platform; the message says which packages bring one.
    """

    def __init__(self, model: "mujoco.MjModel", size: tuple[int, int], shadows: bool) -> None:
        if os.environ.get("MUJOCO_GL", "").lower() in _DISABLED:
            raise CannotContinue(NO_GRAPHICS)
        h, w = size
        try:
            self._renderer: mujoco.Renderer | None = mujoco.Renderer(model, h, w, max_geom=model.ngeom + 20)
        except (mujoco.FatalError, ImportError) as error:
            platform = os.environ.get("MUJOCO_GL", "unset")
            raise CannotContinue(
                f"MuJoCo cannot draw with MUJOCO_GL {platform}: {error}. Set MUJOCO_GL=egl (Debian: libegl1 "
                f"libegl-mesa0) or MUJOCO_GL=osmesa (libosmesa6), or leave it unset and import "
                f"benchmarks.tabletop before mujoco, which reads it only once"
            ) from error
        flags = self._renderer.scene.flags
        flags[int(mujoco.mjtRndFlag.mjRND_SHADOW)] = int(shadows)
        flags[int(mujoco.mjtRndFlag.mjRND_REFLECTION)] = 0
        # MuJoCo ends the EGL display at exit; whoever frees a context after that prints an EGLError.
        atexit.register(_close, weakref.ref(self))

    def draw(self, data: "mujoco.MjData", camera: int) -> UInt8[np.ndarray, "h w 3"]:
        """One camera's picture, RGB, row 0 at the top."""
        if self._renderer is None:
            raise RuntimeError("these pictures were closed; reset the simulator to draw again")
        self._renderer.update_scene(data, camera)
        return self._renderer.render()

    def close(self) -> None:
        """Free the OpenGL context; a second call does nothing."""
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = None


def _close(reference: "weakref.ref[Pictures]") -> None:
    pictures = reference()
    if pictures is not None:
        pictures.close()


__all__ = ["NO_GRAPHICS", "Pictures", "choose_platform", "egl_devices", "loads_any", "mujoco"]

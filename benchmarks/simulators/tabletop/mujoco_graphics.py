"""Imports MuJoCo after choosing its graphics platform; files of this package import `mujoco` from here.

MuJoCo reads MUJOCO_GL once, while it is imported, so the choice cannot be made later.
"""

import atexit
import importlib.util
import os
import sys
import weakref

import numpy as np
from jaxtyping import UInt8

from benchmarks.simulators.tabletop.opengl_platform import (
    egl_devices,
    obstacle,
    osmesa,
    platform_for_import,
    way_out,
)

_USERS = dict(os.environ)  # before MUJOCO_GL is chosen here
_EARLY = "mujoco" in sys.modules
_chosen = None if _EARLY else platform_for_import(_USERS)
if _chosen is not None:
    os.environ["MUJOCO_GL"] = _chosen

import mujoco  # noqa: E402  (the variable above must be set first)

from ai_wam.errors import CannotContinue  # noqa: E402

if _chosen == "disable":  # for the import alone: errors name what the user set
    del os.environ["MUJOCO_GL"]
    os.environ.update({name: value for name, value in _USERS.items() if name == "MUJOCO_GL"})


def _drawing_error(why: str) -> CannotContinue:
    way = way_out(_variables(), egl_devices(), osmesa())
    return CannotContinue(f"MuJoCo cannot draw: {why}" + (f"; {way}" if way else ""))


def _variables() -> dict[str, str]:
    """The environment variables as the user set them, also after the import, without our choice."""
    chosen = _chosen is not None and os.environ.get("MUJOCO_GL") == _chosen
    return {**os.environ, "MUJOCO_GL": _USERS.get("MUJOCO_GL", "")} if chosen else dict(os.environ)


def _import_triton() -> None:
    """Import Triton, if it is installed, before the first OpenGL context is made.

    Triton and Mesa's software renderer bring a copy of LLVM each. A process in which Mesa's is loaded first
    dies of a segmentation fault as soon as torch imports Triton, as `torch._dynamo` and torchvision do.
    """
    if importlib.util.find_spec("triton") is not None:
        importlib.import_module("triton")


class Pictures:
    """Renders a model's cameras off screen. Usable in the thread that made it only.

    Raises:
        RuntimeError: no OpenGL platform; the message says which packages bring one.
    """

    def __init__(self, model: "mujoco.MjModel", size: tuple[int, int], shadows: bool) -> None:
        if why := obstacle(_variables(), egl_devices(), osmesa()):
            raise _drawing_error(why)
        _import_triton()
        h, w = size
        try:
            self._renderer: mujoco.Renderer | None = mujoco.Renderer(model, h, w, max_geom=model.ngeom + 20)
        except (mujoco.FatalError, ImportError, RuntimeError, AttributeError) as error:
            # of PyOpenGL, which asks a library that was not loaded
            names = ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")
            values = ", ".join(f"{name} {_variables().get(name) or 'unset'}" for name in names)
            early = (
                "; import benchmarks.simulators.tabletop before mujoco, which reads MUJOCO_GL once"
                if _EARLY
                else ""
            )
            raise _drawing_error(f"{error} (with {values}){early}") from error
        flags = self._renderer.scene.flags
        flags[int(mujoco.mjtRndFlag.mjRND_SHADOW)] = int(shadows)
        flags[int(mujoco.mjtRndFlag.mjRND_REFLECTION)] = 0
        # MuJoCo ends the EGL display at exit; freeing a context after that prints an EGLError.
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


__all__ = ["Pictures", "mujoco"]

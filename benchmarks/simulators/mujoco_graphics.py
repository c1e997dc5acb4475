"""Imports MuJoCo after choosing its graphics platform; simulators import `mujoco` from here.

MuJoCo reads MUJOCO_GL once, while it is imported, so the choice cannot be made later.
"""

import atexit
import importlib.util
import math
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from ai_wam.cameras import Cameras
from ai_wam.errors import CannotContinue
from benchmarks.simulators.opengl_platform import (
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

try:
    import mujoco  # the variable above must be set first
except OSError as error:
    raise CannotContinue(
        f"MuJoCo's libraries do not load: {error}. That happens where pip put an older release over 4.0, "
        "which is three packages. Make a new environment, or `pip uninstall -y mujoco mujoco-core "
        "mujoco-studio` and install again"
    ) from error

if _chosen == "disable":  # for the import alone: errors name what the user set
    del os.environ["MUJOCO_GL"]
    os.environ.update({name: value for name, value in _USERS.items() if name == "MUJOCO_GL"})

_thread = threading.local()


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


@dataclass(frozen=True)
class Lamp:
    """A directional light that is drawn and is not in the model.

    Attributes:
        direction: in which it shines, in the world frame.
        diffuse: red, green, blue.
    """

    direction: Float[np.ndarray, "3"]
    diffuse: Float[np.ndarray, "3"]


class Pictures:
    """Renders a model's cameras off screen. Usable in the thread that made it only.

    All pictures of a thread share one OpenGL context: in a new one, Mesa compiles its shaders for 70 ms.

    Raises:
        CannotContinue: no OpenGL platform; the message says which packages bring one.
    """

    def __init__(self, model: "mujoco.MjModel", size: tuple[int, int], shadows: bool) -> None:
        if why := obstacle(_variables(), egl_devices(), osmesa()):
            raise _drawing_error(why)
        _import_triton()
        try:
            self._opengl = _opengl_context()
            self._drawing: mujoco.MjrContext | None = mujoco.MjrContext(
                model, mujoco.mjtFontScale.mjFONTSCALE_150
            )
        except (mujoco.FatalError, ImportError, RuntimeError, AttributeError) as error:
            # of PyOpenGL, which asks a library that was not loaded
            names = ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")
            values = ", ".join(f"{name} {_variables().get(name) or 'unset'}" for name in names)
            early = (
                "; import benchmarks.simulators.mujoco_graphics before mujoco, which reads MUJOCO_GL once"
                if _EARLY
                else ""
            )
            raise _drawing_error(f"{error} (with {values}){early}") from error
        self._model, self._size = model, size
        self._scene = mujoco.MjvScene(model, model.ngeom + model.nsite + 20)
        self._scene.flags[int(mujoco.mjtRndFlag.mjRND_SHADOW)] = int(shadows)
        self._scene.flags[int(mujoco.mjtRndFlag.mjRND_REFLECTION)] = 0
        # MuJoCo ends the EGL display at exit; freeing a context after that prints an EGLError.
        atexit.register(_close, weakref.ref(self))

    def draw(
        self, data: "mujoco.MjData", camera: int, lamps: Sequence[Lamp] = ()
    ) -> UInt8[np.ndarray, "h w 3"]:
        """One camera's picture, RGB, row 0 at the top.

        Args:
            data: the present state.
            camera: its number in the model.
            lamps: drawn beside the model's lights; like the first of these in all else.
        """
        if self._drawing is None:
            raise RuntimeError("these pictures were closed; reset the simulator to draw again")
        viewed = mujoco.MjvCamera()
        viewed.type, viewed.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        every, option = mujoco.mjtCatBit.mjCAT_ALL, mujoco.MjvOption()
        mujoco.mjv_updateScene(self._model, data, option, None, viewed, every, self._scene)
        for lamp in lamps:
            _add(lamp, self._scene)
        self._opengl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._drawing)
        h, w = self._size
        area, picture = mujoco.MjrRect(0, 0, w, h), np.empty((h, w, 3), np.uint8)
        mujoco.mjr_render(area, self._scene, self._drawing)
        mujoco.mjr_readPixels(picture, None, area, self._drawing)
        return np.ascontiguousarray(picture[::-1])  # OpenGL's first row is the lowest

    def upload_textures(self) -> None:
        """Draw with the model's textures as they are now."""
        if self._drawing is not None:
            self._opengl.make_current()
            for texture in range(self._model.ntex):
                mujoco.mjr_uploadTexture(self._model, self._drawing, texture)

    def close(self) -> None:
        """Free what the pictures hold on the graphics card; a second call does nothing."""
        if self._drawing is not None:
            self._opengl.make_current()
            self._drawing.free()
        self._drawing = None


def _add(lamp: Lamp, scene: "mujoco.MjvScene") -> None:
    """Add a lamp to the lights of a scene that was updated."""
    like = next(light for light in scene.lights if not light.headlight)
    added = scene.lights[scene.nlight]
    for name in dir(like):
        if not name.startswith("_"):
            setattr(added, name, getattr(like, name))
    added.dir[:], added.diffuse[:], added.ambient[:] = lamp.direction, lamp.diffuse, 0
    scene.nlight += 1


def _opengl_context() -> "mujoco.GLContext":
    """The thread's own, made current; a forked process makes another. Pictures bring their buffers."""
    if getattr(_thread, "process", None) != os.getpid():
        _thread.context, _thread.process = mujoco.GLContext(1, 1), os.getpid()
        atexit.register(_thread.context.free)  # likewise before the display ends
    _thread.context.make_current()
    return _thread.context


def _close(reference: "weakref.ref[Pictures]") -> None:
    pictures = reference()
    if pictures is not None:
        pictures.close()


def calibration(
    model: Any, data: Any, camera: int, size: tuple[int, int]
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "4 4"]]:
    """Intrinsics and world_from_camera of one of MuJoCo's cameras in our convention.

    Args:
        model: MuJoCo's model.
        data: MuJoCo's data, with poses of the present state.
        camera: its number in the model.
        size: height and width of the picture, pixels.
    """
    h, w = size
    focal = h / 2 / math.tan(math.radians(float(model.cam_fovy[camera])) / 2)
    intrinsics = torch.tensor([[focal, 0, w / 2], [0, focal, h / 2], [0, 0, 1]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.from_numpy(data.cam_xmat[camera].reshape(3, 3))
    pose[:3, 3] = torch.from_numpy(data.cam_xpos[camera])
    calibrated = Cameras.from_opengl(intrinsics, pose)
    return calibrated.intrinsics.numpy(), calibrated.world_from_camera.numpy()


__all__ = ["Lamp", "Pictures", "calibration", "mujoco"]

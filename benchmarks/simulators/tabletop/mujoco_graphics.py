"""MuJoCo, imported after its graphics platform was chosen; files of this package import `mujoco` from here.

The text of files that define tasks is part of every result's hash, so their import of this module stays.
"""

from benchmarks.simulators.mujoco_graphics import mujoco

__all__ = ["mujoco"]

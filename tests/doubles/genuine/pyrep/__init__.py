"""Stands before the genuine PyRep on sys.path: its Python sources, with a fake in the place of the C library.

AI_WAM_RLBENCH_SOURCES is a folder with checkouts `PyRep` and `RLBench`.
"""

import importlib
import os
import sys
import types
from pathlib import Path

import cffi

sources = Path(os.environ["AI_WAM_RLBENCH_SOURCES"])
__path__ = [str(sources / "PyRep" / "pyrep")]


class MissingLibrary:
    def __getattr__(self, name):
        raise AttributeError(f"the fake of CoppeliaSim has no {name}")


library = types.ModuleType("pyrep.backend._sim_cffi")
library.ffi, library.lib = cffi.FFI(), MissingLibrary()
sys.modules[library.__name__] = library

import coppeliasim_fake  # noqa: E402

coppeliasim_fake.install(importlib.import_module("pyrep.backend.sim"))

from pyrep.pyrep import PyRep  # noqa: E402

genuine_launch = PyRep.launch


def launch(self, scene_file="", **arguments):
    """The genuine one, without the scene: the fake has its own."""
    assert scene_file.endswith("task_design.ttt")
    genuine_launch(self, "", **arguments)


PyRep.launch = launch

"""One task per file: module `close_drawer` holds class `CloseDrawer`. A new file is a new task, no list."""

import importlib
import pkgutil

from ai_wam.errors import InvalidValue
from benchmarks.simulators.tabletop.camera_rigs import Workspace
from benchmarks.simulators.tabletop.robot_tasks.base import TabletopTask


def names() -> tuple[str, ...]:
    """The tasks of this folder."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"))


def load(name: str, workspace: Workspace) -> TabletopTask:
    """The task of that name.

    Raises:
        ValueError: unknown task; the message lists the known ones.
    """
    if name not in names():
        raise InvalidValue(f"task {name!r} is unknown to the tabletop suite; known: {list(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    task: TabletopTask = getattr(module, name.title().replace("_", ""))(workspace)
    return task

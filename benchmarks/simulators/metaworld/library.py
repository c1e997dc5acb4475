"""The package `metaworld`, imported when it is first needed and only in the versions that were measured."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ai_wam.errors import CannotContinue, MissingPackage
from benchmarks.simulators.mujoco_graphics import mujoco  # before metaworld, which imports it too

METAWORLD, MUJOCO = "3.1.1", "3.3.0"  # another physics engine would be another benchmark
_ADVICE = (
    f"run `pip install 'ai-wam[metaworld]'` in an environment of its own, which brings metaworld "
    f"{METAWORLD} and mujoco {MUJOCO}"
)


@dataclass(frozen=True)
class Library:
    """What is used of the package.

    Attributes:
        environments: classes by published name, such as "push-v3".
        experts: classes of the scripted experts by the same names.
        task_type: class of the description that an environment's `set_task` takes.
    """

    environments: Mapping[str, Any]
    experts: Mapping[str, Any]
    task_type: Any


@cache
def load() -> Library:
    """Import the package.

    Raises:
        MissingPackage: it, or something it imports, is not installed.
        CannotContinue: it or MuJoCo is there in another version.
    """
    try:
        found = version("metaworld")
    except PackageNotFoundError as error:
        raise MissingPackage(f"Meta-World's package `metaworld` is not installed; {_ADVICE}") from error
    check_versions(found, mujoco.__version__)
    try:
        environments = importlib.import_module("metaworld.env_dict").ALL_V3_ENVIRONMENTS
        experts = importlib.import_module("metaworld.policies").ENV_POLICY_MAP
        task_type = importlib.import_module("metaworld.types").Task
    except ImportError as error:
        raise MissingPackage(f"Meta-World cannot be imported ({error}); {_ADVICE}") from error
    return Library(environments, experts, task_type)


def check_versions(metaworld: str, engine: str) -> None:
    """Refuse versions with which scenes, physics or tasks would be others.

    Args:
        metaworld: version of the package.
        engine: version of MuJoCo.

    Raises:
        CannotContinue: another version of either.
    """
    if (metaworld, engine) != (METAWORLD, MUJOCO):
        raise CannotContinue(
            f"Meta-World runs with metaworld {METAWORLD} and mujoco {MUJOCO}, and this environment has "
            f"metaworld {metaworld} and mujoco {engine}; {_ADVICE}"
        )

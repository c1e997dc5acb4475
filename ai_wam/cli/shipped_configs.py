"""Shipped configurations by their name: `configs/...` works from any folder."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

_T = TypeVar("_T")
_SWITCHES = ("camera_check",)  # options that may be given without a value


def instantiate(described: str | Mapping[str, Any], kind: type[_T], *changes: str) -> _T:
    """The object that a YAML file of one class describes, for use from Python.

    Args:
        described: the file, or a shipped one by its name, such as "configs/backbone/wan-tiny.yaml"; or what
            such a file holds: class_path and init_args.
        kind: the interface it must have, such as `backbones.base.VideoBackbone`.
        changes: arguments to be set, as on the command line: "training.lora.rank=8".
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--object", type=kind, sub_configs=True)
    if isinstance(described, str):
        words = [f"--object={resolved([described])[0]}"]
    else:
        words = [f"--object={json.dumps(described)}"]
    words += [f"--object.init_args.{change}" for change in changes]
    made: Any = parser.instantiate(parser.parse_args(words))
    return made.object


def config_path(name: str) -> Path:
    """The file of a shipped configuration such as "configs/quickstart.yaml"."""
    return Path(str(files("configs"))).joinpath(*Path(name).parts[1:])


def own_or_shipped(name: str) -> Path:
    """A file of the working folder, or the shipped one of that name where the folder has none."""
    return Path(_resolve(name))


def resolved(words: Sequence[str]) -> list[str]:
    """Command-line words; `configs/...yaml` means the shipped file where the working folder has none.

    A switch stands for itself: `--camera-check` alone, with a hyphen or not, says true.
    """
    following = [*words[1:], ""]
    return [_resolve(_switch(word, following[place])) for place, word in enumerate(words)]


def _switch(word: str, following: str) -> str:
    option, equals, value = word.partition("=")
    name = option.removeprefix("--").replace("-", "_")
    if not option.startswith("--") or name not in _SWITCHES:
        return word
    explicit = equals or following.lower() in ("true", "false")
    return f"--{name}{equals}{value}" if explicit else f"--{name}=true"


def _resolve(word: str) -> str:
    option, equals, value = word.rpartition("=")
    if (
        value.startswith("configs/")
        and value.endswith(".yaml")
        and not Path(value).exists()
        and config_path(value).exists()
    ):
        return f"{option}{equals}{config_path(value)}"
    return word

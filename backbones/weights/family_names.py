"""The family of a released checkpoint, for error messages."""

from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml


def family_of(network: str) -> str | None:
    """The backbone for a network of diffusers and the shipped files that load it; None if there is none.

    Args:
        network: name of its class.
    """
    names, family = [], None
    for file in sorted(Path(str(files("configs"))).joinpath("backbone").glob("*.yaml")):
        content = yaml.safe_load(file.read_text())
        if "pretrained" not in content["init_args"]:
            continue
        module, _, name = content["class_path"].rpartition(".")
        kind: Any = getattr(import_module(module), name)
        if network in [base.__name__ for base in kind.Denoiser.__mro__]:
            family = family or name
            names.append(file.name)
    return None if family is None else f"{family} (configs/backbone/{', '.join(names)})"

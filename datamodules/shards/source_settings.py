"""The settings of a source as JSON, so that one folder never mixes two data sets."""

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from upath import UPath

from ai_wam.utils.class_paths import class_path

_DEEPEST = 8
_LARGEST_ARRAY = 64


def describe(value: Any, depth: int = 0) -> Any:
    """The value as JSON: plain values as they are, objects as their class path and public attributes.

    Two objects built from the same arguments by the same class give equal descriptions if their public
    attributes are settings; values that change during use belong into attributes that begin with an
    underscore.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path | UPath):
        return str(value)
    if isinstance(value, np.ndarray):
        small = value.size <= _LARGEST_ARRAY
        return value.tolist() if small else hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    if isinstance(value, Mapping):
        return {str(key): describe(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item, depth + 1) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((describe(item, depth + 1) for item in value), key=repr)
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    name = class_path(value)
    if depth >= _DEEPEST:
        return {"class": name}
    return {"class": name, **{key: describe(item, depth + 1) for key, item in _attributes(value).items()}}


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """One line per place where two descriptions differ: `where: old != new`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in sorted({*old, *new}):
            here = f"{path}.{key}" if path else str(key)
            if key not in old or key not in new:
                lines.append(f"{here}: {old.get(key, 'absent')!r} != {new.get(key, 'absent')!r}")
            else:
                lines += differences(old[key], new[key], here)
        return lines
    return [] if old == new else [f"{path}: {old!r} != {new!r}"]


def _attributes(value: Any) -> Mapping[str, Any]:
    if is_dataclass(value):
        return {
            field.name: getattr(value, field.name)
            for field in fields(value)
            if not field.name.startswith("_")
        }
    return {key: item for key, item in getattr(value, "__dict__", {}).items() if not key.startswith("_")}

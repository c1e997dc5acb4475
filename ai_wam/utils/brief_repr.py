"""Representations for a notebook: shapes, kinds and units of arrays instead of their numbers."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

POSE = "metres, quaternion x y z w, openness; world frame"  # of actions
_FEW = 3  # entries of a mapping or a sequence that are shown


class BriefRepr:
    """Mixin of dataclasses of arrays, which are declared with `repr=False`.

    Attributes:
        units: what the representation says of a field besides its shape: units, frame, range.
    """

    units: ClassVar[Mapping[str, str]] = {}

    def __repr__(self) -> str:
        parts = []
        known = [field for field in fields(self) if hasattr(self, field.name)]  # type: ignore[arg-type]  # a mixin
        for field in known:  # of an object that is being built, those that it has
            unit = self.units.get(field.name)
            value = getattr(self, field.name)
            shown = f"{brief(value)} ({unit})" if unit and value is not None else brief(value)
            parts.append(f"{field.name}={shown}")
        return f"{type(self).__name__}({', '.join(parts)})"


def brief(value: Any) -> str:
    """An array as its type and shape, a collection as its first entries, anything else as it is."""
    if isinstance(value, Tensor | np.ndarray):
        kind = str(value.dtype).removeprefix("torch.")
        where = f" on {value.device}" if isinstance(value, Tensor) and value.device.type != "cpu" else ""
        return f"{kind}[{', '.join(map(str, value.shape))}]{where}"
    if isinstance(value, Mapping):
        return f"{{{_some([f'{name!r}: {brief(each)}' for name, each in value.items()])}}}"
    if isinstance(value, list | tuple):
        return f"({_some([brief(each) for each in value])})"
    return repr(value)


def _some(entries: list[str]) -> str:
    more = f", ... {len(entries)} in all" if len(entries) > _FEW else ""
    return ", ".join(entries[:_FEW]) + more

"""The member `labels.npz` of a labeled episode, and what episodes said of themselves before there was one."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from ai_wam.errors import InvalidValue
from ai_wam.labels import Labels

_TYPES = {"valid": np.bool_, "confidence": np.float32, "disagreement_px": np.float32}


def label_arrays(labels: Labels) -> dict[str, np.ndarray]:
    """The arrays of the member, by name."""
    return {name: getattr(labels, name).astype(kind) for name, kind in _TYPES.items()}


def read_labels(member: bytes) -> Labels:
    """Labels of a member.

    Raises:
        ValueError: arrays that are missing.
    """
    with np.load(io.BytesIO(member)) as stored:
        if missing := set(_TYPES) - set(stored.files):
            raise InvalidValue(f"it lacks the arrays {sorted(missing)}")
        return Labels(**{name: stored[name] for name in _TYPES})


def labels_of_provenance(provenance: Mapping[str, Any]) -> Labels | None:
    """Labels of shards that were written before the member was: lists, null where there is no number."""
    said = provenance.get("labels", {})
    if not isinstance(said, Mapping) or not set(_TYPES) <= set(said):
        return None
    return Labels(**{name: np.array(said[name], dtype=kind) for name, kind in _TYPES.items()})

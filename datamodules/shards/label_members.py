"""The member `labels.npz` of a labeled episode, and its older form in the provenance."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ai_wam.episodes import Labels
from ai_wam.errors import InvalidValue
from ai_wam.files.numpy_arrays import read_npz

_TYPES = {"valid": np.bool_, "confidence": np.float32, "disagreement_px": np.float32}

_HEADERS = 65_536  # bytes at most of all arrays' headers


def label_arrays(labels: Labels) -> dict[str, np.ndarray]:
    """The arrays of the member, by name."""
    return {name: getattr(labels, name).astype(kind) for name, kind in _TYPES.items()}


def read_labels(member: bytes, frames: int) -> Labels:
    """Labels of a member.

    Raises:
        ValueError: arrays that are missing, of another type or of another number of frames.
    """
    most = 8 * frames * len(_TYPES) + _HEADERS
    return _checked(read_npz(member, "the labels", list(_TYPES), most), frames)


def labels_of_provenance(provenance: Mapping[str, Any], frames: int) -> Labels | None:
    """Labels of shards that were written before the member was: lists, null where there is no number.

    Raises:
        ValueError: lists of other values, or of another number of frames.
    """
    labels = provenance.get("labels", {})
    if not isinstance(labels, Mapping) or not set(_TYPES) <= set(labels):
        return None
    return _checked({name: np.array(labels[name], dtype=kind) for name, kind in _TYPES.items()}, frames)


def _checked(arrays: Mapping[str, np.ndarray], frames: int) -> Labels:
    for name, kind in _TYPES.items():
        if arrays[name].dtype != kind or arrays[name].ndim != 1:
            found = f"shape {arrays[name].shape} of {arrays[name].dtype}"
            raise InvalidValue(f"{name!r} has {found}, expected ({frames},) of {np.dtype(kind)}")
    labels = Labels(**arrays)
    labels.check(frames)
    return labels

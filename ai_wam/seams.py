"""Where one chunk of actions takes over from another; NumPy alone, since robots import it too."""

import numpy as np


def jump(old: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    """Millimetres and degrees between two actions [8] with unit quaternions."""
    cosine = min(1.0, abs(float((old[3:7] * new[3:7]).sum())))
    return 1000 * float(np.linalg.norm(new[:3] - old[:3])), 2 * float(np.degrees(np.arccos(cosine)))

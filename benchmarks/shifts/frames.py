"""Frames as a policy gets them under a shift: views lost, pictures spoilt, cameras given with an error."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from ai_wam.episodes import View
from ai_wam.poses import rotation_from_vector

Picture = UInt8[np.ndarray, "h w 3"]


def remaining(drawn: Mapping[str, Any], wanted: Sequence[str], seconds: float) -> list[str]:
    """The views that are left of the wanted ones; at least one, so that there is something to see.

    Args:
        drawn: values of `benchmarks.shifts.parts.ViewShift`.
        wanted: names.
        seconds: simulated time in the trial.
    """
    there = [view for view in wanted if view in drawn["keep"]]
    if seconds < drawn["after"]:
        return there
    lost = [view for view in drawn["order"] if view in there][: min(drawn["lose"], len(there) - 1)]
    return [view for view in there if view not in lost]


def spoilt(picture: Picture, drawn: Mapping[str, Any], rng: np.random.Generator) -> Picture:
    """A picture through exposure, blur, noise and JPEG, in this order.

    Args:
        picture: as it was rendered.
        drawn: values of `benchmarks.shifts.parts.SensorShift`.
        rng: of the noise.
    """
    if drawn["exposure"]:
        linear = (picture / 255.0) ** 2.2 * 2.0 ** drawn["exposure"]
        picture = np.round(255 * np.clip(linear, 0, 1) ** (1 / 2.2)).astype(np.uint8)
    if drawn["blur"]:
        picture = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(drawn["blur"])))
    if drawn["noise"]:
        noisy = picture + rng.normal(0, drawn["noise"], picture.shape)
        picture = np.clip(np.round(noisy), 0, 255).astype(np.uint8)
    if drawn["jpeg"] <= 100:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=round(drawn["jpeg"]))
        picture = np.asarray(Image.open(file))
    return np.array(picture)


def misplaced(view: View, drawn: Mapping[str, Any]) -> View:
    """The same picture with another pose of its camera.

    Args:
        view: as it is.
        drawn: a camera's values of `benchmarks.shifts.parts.CalibrationShift`.
    """
    error = np.eye(4)
    vector = torch.deg2rad(torch.tensor(drawn["rotation_deg"], dtype=torch.float64))
    error[:3, :3] = rotation_from_vector(vector).numpy()
    error[:3, 3] = np.array(drawn["translation_mm"]) / 1000
    return replace(view, world_from_camera=view.world_from_camera @ error)

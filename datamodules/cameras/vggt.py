"""Cameras of uncalibrated pictures, estimated by VGGT (arXiv 2503.11651).

The extra `vggt` installs the package; its weights come from a folder or a hub id. This was never run with
the genuine package or weights.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from ai_wam.errors import FileTrouble, InvalidValue, MissingPackage
from datamodules.cameras.calibration import Calibration

_WIDTH, _PATCH = 518, 14  # pixels: what VGGT was trained with


class Vggt:
    """Estimates cameras in the first view's frame, in an unknown unit of length."""

    def __init__(self, weights: str) -> None:
        """Remember the weights.

        Args:
            weights: a folder, or a hub id such as facebook/VGGT-1B.

        Raises:
            ModuleNotFoundError: the package is not installed.
        """
        if find_spec("vggt") is None:
            raise MissingPackage(
                "estimating cameras needs the package vggt, which is not installed: pip install "
                "'ai-wam[vggt]', or calibrate the cameras and give a camera file (docs/predict.md)"
            )
        self.weights = weights

    @torch.no_grad()
    def estimate(self, pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> dict[str, Calibration]:
        """A calibration per view, for the pictures as they are.

        Raises:
            ValueError: fewer than two pictures, or pictures of different shapes.
            OSError: weights that are not there.
        """
        sizes = {view: (picture.shape[0], picture.shape[1]) for view, picture in pictures.items()}
        if len(pictures) < 2 or len(set(sizes.values())) > 1:
            raise InvalidValue(
                f"vggt needs two pictures or more, all of one size; got {sizes} (height, width)"
            )
        stack = torch.stack([_resized(picture) for picture in pictures.values()])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        intrinsics, camera_from_world = self._run(stack.to(device))
        return {
            view: _calibration(k, pose, (stack.shape[2], stack.shape[3]), sizes[view])
            for view, k, pose in zip(pictures, intrinsics, camera_from_world, strict=True)
        }

    def _run(
        self, pictures: Float[Tensor, "v 3 h w"]
    ) -> tuple[Float[Tensor, "v 3 3"], Float[Tensor, "v 3 4"]]:
        """K in pixels of the pictures, and camera_from_world in OpenCV's axes."""
        model = self._load().to(pictures.device).eval()
        with torch.autocast(pictures.device.type, dtype=torch.bfloat16):
            tokens, _ = model.aggregator(pictures[None])
        with torch.autocast(pictures.device.type, enabled=False):
            encoding = model.camera_head(tokens)[-1].float()
        matrices = import_module("vggt.utils.pose_enc").pose_encoding_to_extri_intri
        extrinsics, intrinsics = matrices(encoding, tuple(pictures.shape[-2:]))
        return intrinsics[0].double().cpu(), extrinsics[0].double().cpu()

    def _load(self) -> Any:
        try:
            return import_module("vggt.models.vggt").VGGT.from_pretrained(self.weights)
        except (OSError, ValueError) as error:
            raise FileTrouble(
                f"VGGT's weights cannot be loaded from {self.weights!r}: {error}. Give vggt a folder with "
                "config.json and model.safetensors, or a hub id such as facebook/VGGT-1B"
            ) from error


def _resized(picture: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 th tw"]:
    """The picture in [0, 1], resized to VGGT's width and a height of whole patches."""
    h, w = picture.shape[:2]
    target = (max(1, round(h * _WIDTH / w / _PATCH)) * _PATCH, _WIDTH)
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    resized = functional.interpolate(image, target, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)


def _calibration(
    intrinsics: Float[Tensor, "3 3"],
    camera_from_world: Float[Tensor, "3 4"],
    seen: tuple[int, int],
    size: tuple[int, int],
) -> Calibration:
    """The calibration of a picture, from K of the resized picture."""
    stretch = np.diag([size[1] / seen[1], size[0] / seen[0], 1.0])
    # A network's rotation is one to a few digits only; the nearest exact one is taken.
    left, _, right = np.linalg.svd(camera_from_world[:, :3].numpy())
    rotation = left @ right
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.T, -rotation.T @ camera_from_world[:, 3].numpy()
    return Calibration((stretch @ intrinsics.numpy())[None], pose[None], size)

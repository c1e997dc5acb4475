"""Callbacks that write the predictions of `ai-wam predict`."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from ai_wam.action_images import DecodeStatus
from ai_wam.cameras import Cameras
from ai_wam.errors import CannotContinue
from ai_wam.files.atomic import AnyPath, atomic_file, inside
from ai_wam.types import ActionChunk, Batch
from ai_wam.utils.counted import counted
from ai_wam.video import VideoEncoding, overlay, to_uint8, write_video
from tasks.evaluation.trajectory_plot import draw_trajectory

_REASONS = {
    DecodeStatus.OK: "sure enough to be measured, but refused by the policy",
    DecodeStatus.RESCUED: "measured in part, but refused by the policy",
    DecodeStatus.FILLED: "without any blob in the generated action images",
    DecodeStatus.OFFSCREEN: "with a point that fewer than two views show",
    DecodeStatus.INCONSISTENT: "whose views show no common pose",
    DecodeStatus.DEGENERATE: "with fewer than two views, or views too close together",
    DecodeStatus.NONFINITE: "with NaN in pictures or cameras",
}
_OBSERVATION = "observation.mp4"
_SHOWN_HEIGHT = 384  # pixels that small videos are enlarged to, about
_COLUMNS = ("t_s", "x_m", "y_m", "z_m", "qx", "qy", "qz", "qw", "openness", "valid", "confidence")


class ActionWriter(BasePredictionWriter):
    """One .npz per batch: keys, actions "b a 8", valid "b a", confidence "b a", and dt in seconds.

    Where the policy knows them, position_std "b a" in metres, too.

    At the end it prints their paths and how many actions are valid. Those of an earlier run in the same
    folder are replaced as a whole, so that the files there are always of one run.

    Args:
        folder: where they go; made if missing.
    """

    def __init__(self, folder: Path, write_interval: Literal["batch"] = "batch") -> None:
        super().__init__(write_interval)
        self.folder = folder
        self._samples = self._valid = self._actions = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what an earlier run wrote."""
        if trainer.is_global_zero:
            for file in self.folder.glob("rank*-batch*.npz"):
                file.unlink()
        trainer.strategy.barrier()

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what was written."""
        files = self.folder / f"rank{trainer.global_rank}-batch*.npz"
        print(
            f"{files}: {counted(self._samples, 'sample')}, {self._valid} of {self._actions} actions are valid"
        )

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: ActionChunk,
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the file of one batch, atomically."""
        arrays = {
            "keys": np.array(batch.keys),
            "actions": prediction.actions.numpy(),
            "valid": prediction.valid.numpy(),
            "confidence": prediction.confidence.numpy(),
            "dt": np.array(prediction.dt),
        }
        if prediction.position_std is not None:
            arrays["position_std"] = prediction.position_std.numpy()
        _write(self.folder / f"rank{trainer.global_rank}-batch{batch_idx:05d}.npz", _npz(arrays))
        self._samples += len(batch.keys)
        self._valid += int(prediction.valid.sum())
        self._actions += prediction.valid.numel()


class SampleWriter(BasePredictionWriter):
    """A folder per sample, named by its key: videos, a picture of the path, and the actions as numbers.

    Its files::

        observation.mp4    generated observation, views side by side (plans that generate it)
        action_images.mp4  the action video it generated
        overlay.mp4        its points over the generated observation, or over the present picture
        trajectory.png     the poses in space, with the cameras
        actions.csv        a row per step, the present one first; units in the header
        actions.npz        the same with the cameras and their pictures, and the standard deviations of the
                           positions where the policy knows them; as float32 and uint8

    At the end it prints their paths and how many actions are valid. A sample of the same key is written over.

    Args:
        folder: where the folders go; made if missing.
    """

    def __init__(self, folder: Path, write_interval: Literal["batch"] = "batch") -> None:
        super().__init__(write_interval)
        self.folder = folder
        self._valid: dict[str, int] = {}

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fail where no action of any sample is valid.

        Raises:
            RuntimeError: no sample has a valid action; its files are there nevertheless.
        """
        if self._valid and not any(self._valid.values()):
            raise CannotContinue(
                f"no action of {', '.join(self._valid)} is valid, for the reasons above: actions.csv holds "
                "NaN. Look at action_images.mp4; a model needs its views, and training on scenes like these"
            )

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: ActionChunk,
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the samples of a batch, every file atomically."""
        clip: Any = pl_module.clip
        batch = batch.to("cpu")
        for row, key in enumerate(batch.keys):
            files = sample_files(batch, prediction, row, clip.views)
            for name, data in files.items():
                _write(inside(self.folder, f"{key}/{name}"), data)
            if _OBSERVATION not in files:  # an earlier run's plan may have generated it
                (self.folder / key / _OBSERVATION).unlink(missing_ok=True)
            self._valid[key] = int(prediction.valid[row].sum())
            print(f"{self.folder / key}: {validity(prediction, row)}")


def validity(prediction: ActionChunk, row: int) -> str:
    """How many actions of a sample are valid, and what is wrong with the others."""
    valid = prediction.valid[row]
    said = f"{int(valid.sum())} of {len(valid)} actions are valid"
    if bool(valid.all()) or prediction.status is None:
        return said
    counts = Counter(prediction.status[row][~valid].tolist())
    reasons = [f"{count} {_REASONS[DecodeStatus(status)]}" for status, count in sorted(counts.items())]
    return f"{said} ({'; '.join(reasons)})"


def sample_files(batch: Batch, prediction: ActionChunk, row: int, views: Sequence[str]) -> dict[str, bytes]:
    """The files of one sample by name; see `SampleWriter`. All on the CPU."""
    present = batch.view_mask[row]
    names = [view for view, there in zip(views, present.tolist(), strict=True) if there]
    cameras = batch.cameras[row][present, 0]
    steps = _steps(batch, prediction, row)
    actions, valid = steps["actions"], steps["valid"]
    title = f"{batch.prompts[row]!r}: {prediction.dt * (len(actions) - 1):g} s ahead"
    size = (batch.video.shape[-2], batch.video.shape[-1])
    files = {
        "actions.csv": _csv(steps),
        "actions.npz": _npz({**steps, **_described(batch, row, names, cameras, prediction)}),
        "trajectory.png": draw_trajectory(actions, valid, cameras, names, size, title),
    }
    videos = {name: video[row][present] for name, video in prediction.generated.items()}
    painted = videos["action_images"].movedim(1, 2)  # v t 3 h w
    scene = videos.get("observation", batch.video[row][present][:, :, :1]).movedim(1, 2)
    pictures = {"action_images.mp4": to_uint8(painted)}
    pictures["overlay.mp4"] = overlay(scene.expand_as(painted), painted)
    if "observation" in videos:
        pictures[_OBSERVATION] = to_uint8(scene)
    return files | {name: _video(each, 1 / prediction.dt) for name, each in pictures.items()}


def _steps(batch: Batch, prediction: ActionChunk, row: int) -> dict[str, np.ndarray]:
    """The present pose and the predicted ones; the present one is given, so it is sure."""
    count = prediction.actions.shape[1]
    one = torch.ones(1)
    return {
        "seconds": np.arange(count + 1) * prediction.dt,
        "actions": torch.cat([batch.actions[row, :1], prediction.actions[row]]).numpy(),
        "valid": torch.cat([one.bool(), prediction.valid[row]]).numpy(),
        "confidence": torch.cat([one, prediction.confidence[row]]).numpy(),
    }


def _described(
    batch: Batch, row: int, views: Sequence[str], cameras: Cameras, prediction: ActionChunk
) -> dict[str, np.ndarray]:
    """What else belongs to the numbers; the cameras are those of the model's pictures."""
    described = {
        "key": np.array(batch.keys[row]),
        "prompt": np.array(batch.prompts[row]),
        "dt": np.array(prediction.dt),
        "views": np.array(list(views)),
        "intrinsics": cameras.intrinsics.numpy(),
        "world_from_camera": cameras.world_from_camera.numpy(),
        "pictures": to_uint8(batch.video[row][batch.view_mask[row], :, 0]),
    }
    if prediction.position_std is not None:  # the present pose is given, so it is exact
        std = torch.cat([torch.zeros(1), prediction.position_std[row]])
        described["position_std"] = std.numpy()
    return described


def _video(views: UInt8[np.ndarray, "v t h w 3"], hz: float) -> bytes:
    """Views side by side, enlarged where they are small, for any player."""
    frames = np.concatenate(list(views), axis=2)
    scale = max(1, _SHOWN_HEIGHT // frames.shape[1])
    return write_video(frames.repeat(scale, axis=1).repeat(scale, axis=2), hz, VideoEncoding(browser=True))


def _csv(steps: Mapping[str, np.ndarray]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    for seconds, action, valid, confidence in zip(*steps.values(), strict=True):
        numbers = [f"{number:.6g}" for number in action]
        table.writerow([f"{seconds:g}", *numbers, int(valid), f"{confidence:.4f}"])
    return text.getvalue().encode()


def _npz(arrays: Mapping[str, Any]) -> bytes:
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


def _write(file: AnyPath, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_file(file) as stream:
        stream.write(data)

"""Coverage of an epoch: how many of the episodes and windows it holds, and how often."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Integer
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from ai_wam.files.atomic import write_json
from ai_wam.utils.run_folders import own_folder
from datamodules.clip_dataset import ClipDataset

_PART = 1_000_000  # sample numbers counted at a time


@dataclass(frozen=True)
class FolderCoverage:
    """Counts of one folder's episodes and windows among some samples.

    Attributes:
        folder: its path.
        samples: number of samples from it.
        share: of all samples.
        windows: windows in it, and
        windows_seen: how many of them are among the samples.
        episodes: episodes with windows in it, and
        too_short: those without any.
        times: number of episodes by how many samples of them there are, 0 included.
    """

    folder: str
    samples: int
    share: float
    windows: int
    windows_seen: int
    episodes: int
    too_short: int
    times: Mapping[int, int]

    def line(self) -> str:
        """One line of text."""
        seen, often = self.episodes - self.times.get(0, 0), f"{min(self.times)} to {max(self.times)}"
        line = (
            f"{self.folder}: {self.samples} samples ({self.share:.1%}), {seen} of {self.episodes} episodes, "
            f"each {often} times; {self.windows_seen} of {self.windows} windows"
        )
        return f"{line}; too short for a window: {self.too_short}" if self.too_short else line


def cover(dataset: ClipDataset, numbers: Integer[np.ndarray, "n"]) -> list[FolderCoverage]:
    """The coverage of each folder of a dataset by sample numbers."""
    per_window = np.zeros(len(dataset), dtype=np.int32)
    for begin in range(0, len(numbers), _PART):  # `bincount` would need several times the memory
        part = numbers[begin : begin + _PART] % len(dataset)
        np.add.at(per_window, part.astype(np.intp), np.int32(1))  # thirty times slower with other types
    begins = np.concatenate([[0], dataset.ends])
    found = []
    for number, source in enumerate(dataset.sets):
        edges = begins[dataset.begins[number] : dataset.begins[number + 1] + 1]
        windows = per_window[edges[0] : edges[-1]]
        here = np.add.reduceat(windows, edges[:-1][np.diff(edges) > 0] - edges[0])
        times, counts = np.unique(here, return_counts=True)
        found.append(
            FolderCoverage(
                folder=str(source.folder),
                samples=int(here.sum()),
                share=float(here.sum() / max(1, len(numbers))),
                windows=len(windows),
                windows_seen=int(np.count_nonzero(windows)),
                episodes=len(here),
                too_short=int(np.count_nonzero(np.diff(edges) == 0)),
                times=dict(zip(times.tolist(), counts.tolist(), strict=True)),
            )
        )
    return found


class CoverageReport(Callback):
    """Prints the coverage of every epoch and writes it to `<log folder>/coverage/epoch-00000.json`.

    It counts what all ranks have handed out of the epoch, also before an interruption; damaged samples that
    `on_error: skip` left out are not taken off.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # untyped in Lightning
        place = own_folder(trainer) / "coverage"  # asks all ranks
        if not trainer.is_global_zero or data.position.step == 0:  # overfit_batches: Lightning's own sampler
            return
        epoch, step = data.position
        folders = data.coverage(epoch, step)
        lines = "\n  ".join(folder.line() for folder in folders)
        rank_zero_info(f"epoch {epoch}, {step} steps:\n  {lines}")
        content = {"epoch": epoch, "steps": step, "folders": [asdict(folder) for folder in folders]}
        write_json(place / f"epoch-{epoch:05d}.json", content)

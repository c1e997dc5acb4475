"""The map-style dataset of windows of recorded episodes, and the collation of samples into a `Batch`."""

import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.data import Dataset

from ai_wam.cameras import Cameras, CropResize
from ai_wam.errors import InvalidValue
from ai_wam.files.read_errors import DATA_FAULTS, fault, of_machine
from ai_wam.types import Batch, Encoded
from datamodules.reading.rotations import continuous_actions
from datamodules.sampling import Stream, generator
from datamodules.shards.clip_windows import Windows
from datamodules.shards.folder import Recent
from datamodules.shards.format import CAMERAS, EpisodeEntry, ShardError
from datamodules.shards.latent_cache import LatentCache
from datamodules.shards.reader import ROWS_KEPT, ROWS_PER_EPISODE, ShardSet

_TRIED = 100  # windows tried as replacement for a batch of which every sample is damaged
Decode = Literal["all", "first"]
OnError = Literal["raise", "skip"]


@dataclass(frozen=True)
class Sample:
    """A row of a `Batch`; its video has the decoded frames only, none where a cache has their latents."""

    video: Float[Tensor, "v 3 decoded h w"]
    intrinsics: Float[Tensor, "v t 3 3"]
    world_from_camera: Float[Tensor, "v t 4 4"]
    view_mask: Bool[Tensor, "v"]
    recorded: Bool[Tensor, "t"]
    actions: Float[Tensor, "t 8"]
    action_valid: bool
    prompt: str
    key: str
    encoded: Mapping[str, Tensor] = field(default_factory=dict)


class ClipDataset(Dataset["Sample | None"]):
    """Windows of some folders of shards, by sample number (see `datamodules.sampling`)."""

    def __init__(
        self,
        sets: Sequence[ShardSet],
        windows: Windows,
        decode: Decode = "all",
        views_per_sample: int | None = None,
        on_error: OnError = "raise",
        seed: int = 0,
        caches: Sequence[LatentCache] = (),
    ) -> None:
        """Count the windows.

        Args:
            sets: folders of shards.
            windows: how windows are cut.
            decode: "first" decodes the window's first frame only: enough where the future is not needed.
            views_per_sample: draw so many of the clip's views, in the clip's order: for every sample where
                windows are dense, else for every episode, by its key alone; all if left out.
            on_error: "skip" leaves damaged samples out, counts and reports them.
            seed: of the drawn phrasings and views.
            caches: one per folder that fits its windows, so that no pictures are decoded; empty for pictures.

        Raises:
            ValueError: episodes that do not fit the clip.
        """
        self.windows, self.clip, self.caches = windows, windows.clip, list(caches)
        self.decode, self.seed, self.on_error = decode, seed, on_error
        self.sets, self.views = list(sets), views_per_sample or len(windows.clip.views)
        if not 1 <= self.views <= len(self.clip.views):
            raise InvalidValue(
                f"views_per_sample is {views_per_sample}, the clip has {len(self.clip.views)} views"
            )
        self.begins = np.cumsum([0, *map(len, sets)])  # place of each set's first episode, and one past all
        self.ends = np.cumsum(np.concatenate([self._counts(source) for source in sets]), dtype=np.int64)
        self.skipped = torch.zeros(1, dtype=torch.int64).share_memory_()  # counted by all workers
        self._cameras: Recent[dict[str, Cameras]] = Recent(ROWS_KEPT, _rows)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def of(self, source: ShardSet) -> "ClipDataset":
        """The windows of one of the folders, with all of the clip's views."""
        return ClipDataset([source], self.windows, self.decode, None, self.on_error, self.seed)

    def windows_per_episode(self) -> list[Int64[np.ndarray, "_"]]:
        """Number of windows of every episode, folder by folder."""
        counts = np.diff(self.ends, prepend=0)
        return [counts[begin:end] for begin, end in zip(self.begins, self.begins[1:], strict=False)]

    def windows_per_set(self) -> list[int]:
        """Number of windows in each folder."""
        at = np.concatenate([[0], self.ends])[self.begins]
        return [int(count) for count in np.diff(at)]

    def __getitem__(self, number: int) -> Sample | None:
        try:
            return self._sample(int(number))
        except DATA_FAULTS as error:
            if self.on_error == "raise" or of_machine(error):
                raise
            self.skipped += 1
            place = "" if isinstance(error, ShardError) else f"{self._named(int(number))}: "
            why = f"{place}{fault(error)}"
            warnings.warn(f"skipped a sample ({int(self.skipped)} so far): {why}", stacklevel=2)
            return None

    def __getitems__(self, numbers: Sequence[int]) -> list[Sample | None]:
        """A batch's samples; torch's loader calls this instead of `__getitem__` for each.

        Where all samples of a training batch are damaged, as easily happens in batches of one or two, another
        window replaces them: a step needs a sample, and cannot be left out on one process alone.
        """
        samples = [self[number] for number in numbers]
        if (
            self.on_error == "raise"
            or not self.windows.dense
            or any(sample is not None for sample in samples)
        ):
            return samples
        others = ((int(numbers[0]) + i * self._replacement_stride) % len(self) for i in range(1, _TRIED + 1))
        return [next((sample for sample in map(self.__getitem__, others) if sample is not None), None)]

    @property
    def _replacement_stride(self) -> int:
        """Windows from one replacement to the next: by the golden section, damaged episodes are soon left."""
        return max(1, round(len(self) * (5**0.5 - 1) / 2))

    def _named(self, number: int) -> str:
        """The shard and the episode of a sample."""
        source, index = self._place(int(np.searchsorted(self.ends, number % len(self), side="right")))
        entry = self.sets[source].episodes[index]
        return f"{self.sets[source].folder / entry.file}, key {entry.key!r}"

    def _counts(self, source: ShardSet) -> Int64[np.ndarray, "n"]:
        """Number of windows of each episode."""
        frames, counts = source.episodes.frames, np.zeros(len(source), dtype=np.int64)
        for entry, numbers in source.episodes.alike():
            if not set(entry.views) & set(self.clip.views):
                raise InvalidValue(
                    f"{source.folder}: episode {entry.key!r} has views {sorted(entry.views)}, the clip wants "
                    f"{list(self.clip.views)}; set clip.views to views that were recorded"
                )
            self.windows.step(entry)  # raises for a rate that does not fit, before the first sample
            counts[numbers] = self.windows.counts(entry, frames[numbers])
        return counts

    def _place(self, place: int) -> tuple[int, int]:
        """Number of the set, and of the episode in it."""
        number = int(np.searchsorted(self.begins, place, side="right")) - 1
        return number, place - int(self.begins[number])

    def _sample(self, number: int) -> Sample:
        window = number % len(self)
        place = int(np.searchsorted(self.ends, window, side="right"))
        source_number, index = self._place(place)
        source = self.sets[source_number]
        entry, header = source.episodes[index], source.header(index)
        here = window - (int(self.ends[place - 1]) if place else 0)  # number of the window in its episode
        frames = self.windows.frames(entry, here)
        draw = generator(self.seed, Stream.SAMPLE, number)
        prompt = header.instructions[int(draw.integers(len(header.instructions)))]
        names = self._choose_views(entry, draw if self.windows.dense else self._of_episode(entry))
        encoded: Mapping[str, Tensor] = {}
        if self.caches:
            every_view = self.views == len(self.clip.views)
            encoded = self.caches[source_number].window(index, names, here, every_view)
        video, intrinsics, poses = self._pictures(place, names, frames)
        actions = np.zeros((len(frames), 8), np.float32) if header.actions is None else header.actions[frames]
        return Sample(
            video=video,
            intrinsics=intrinsics,
            world_from_camera=poses,
            view_mask=torch.tensor([name is not None for name in names]),
            recorded=torch.tensor(self.windows.recorded(entry, here)),
            actions=torch.from_numpy(continuous_actions(actions)),
            action_valid=header.actions is not None,
            prompt=prompt,
            key=f"{entry.key}@{frames[0]}",
            encoded=encoded,
        )

    def _of_episode(self, entry: EpisodeEntry) -> np.random.Generator:
        return generator(self.seed, Stream.EPISODE, zlib.crc32(entry.key.encode()))

    def _choose_views(self, entry: EpisodeEntry, draw: np.random.Generator) -> list[str | None]:
        """The sample's views; None where the episode lacks one."""
        if self.views == len(self.clip.views):
            return [name if name in entry.views else None for name in self.clip.views]
        present = [name for name in self.clip.views if name in entry.views]
        count = min(self.views, len(present))
        chosen = sorted(draw.choice(len(present), count, replace=False).tolist())
        return [present[i] for i in chosen] + [None] * (self.views - count)

    def _pictures(
        self, place: int, names: Sequence[str | None], frames: Sequence[int]
    ) -> tuple[Float[Tensor, "v 3 decoded h w"], Float[Tensor, "v t 3 3"], Float[Tensor, "v t 4 4"]]:
        number, index = self._place(place)
        source = self.sets[number]
        entry = source.episodes[index]
        wanted = [] if self.caches else frames[:1] if self.decode == "first" else frames
        cameras = self._cameras.get(place, lambda: self._fit_cameras(source, index))
        video, intrinsics, poses = [], [], []
        for name in names:
            if name is None:
                video.append(torch.full((3, len(wanted), *self.clip.size), 127.5))  # zero in [-1, 1]
                intrinsics.append(torch.eye(3).expand(len(frames), 3, 3))
                poses.append(torch.eye(4).expand(len(frames), 4, 4))
                continue
            if wanted:
                images = torch.from_numpy(source.images(index, name, wanted)).permute(3, 0, 1, 2)
                video.append(CropResize(entry.views[name], self.clip.size).images(images))
            else:
                video.append(torch.empty(3, 0, *self.clip.size))
            here = cameras[name]
            moving: Any = list(frames) if here.shape[0] > 1 else [0] * len(frames)
            intrinsics.append(here.intrinsics[moving])
            poses.append(here.world_from_camera[moving])
        return torch.stack(video).div_(127.5).sub_(1), torch.stack(intrinsics), torch.stack(poses)

    def _fit_cameras(self, source: ShardSet, index: int) -> dict[str, Cameras]:
        """The episode's cameras for pictures of the clip's size."""
        entry, header, fitted = source.episodes[index], source.header(index), {}
        with source.naming(entry, CAMERAS):
            for name in set(entry.views) & set(self.clip.views):
                k, e = (torch.from_numpy(m[name]) for m in (header.intrinsics, header.world_from_camera))
                fitted[name] = CropResize(entry.views[name], self.clip.size).cameras(Cameras(k, e))
        return fitted


def _rows(cameras: Mapping[str, Cameras]) -> int:
    """Cost of an episode's cameras in the cache of cameras."""
    return ROWS_PER_EPISODE + sum(len(camera.intrinsics) for camera in cameras.values())


class Collate:
    """Collates samples into a `Batch`; frames that were not decoded are black and not valid."""

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def __call__(self, samples: Sequence[Sample | None]) -> Batch:
        """Stack samples; None (a damaged sample) is dropped.

        Raises:
            ShardError: all of them are None.
        """
        rows = [sample for sample in samples if sample is not None]
        if not rows:
            raise ShardError(
                f"all {len(samples)} samples of a batch are damaged; the warnings before name their shards"
            )
        decoded = rows[0].video.shape[2]
        action_valid = torch.tensor([row.action_valid for row in rows])
        return Batch(
            video=self._video(rows),
            cameras=Cameras(
                torch.stack([row.intrinsics for row in rows]),
                torch.stack([row.world_from_camera for row in rows]),
            ),
            view_mask=torch.stack([row.view_mask for row in rows]),
            video_valid=(torch.arange(self.frames) < decoded).repeat(len(rows), 1),
            recorded=torch.stack([row.recorded for row in rows]),
            actions=torch.stack([row.actions for row in rows]),
            action_valid=action_valid[:, None].repeat(1, self.frames),
            prompts=tuple(row.prompt for row in rows),
            keys=tuple(row.key for row in rows),
            encoded=_encoded(rows),
        )

    def _video(self, rows: Sequence[Sample]) -> Float[Tensor, "b v 3 t h w"]:
        v, _, decoded, h, w = rows[0].video.shape
        if not decoded:  # an expanded zero, which takes no memory: latents come from a cache
            return torch.zeros(1).expand(len(rows), v, 3, self.frames, h, w)
        if decoded == self.frames:
            return torch.stack([row.video for row in rows])
        # NumPy's zeros are pages that cost nothing until they are written, and most of these never are.
        video = torch.from_numpy(np.zeros((len(rows), v, 3, self.frames, h, w), dtype=np.float32))
        for place, row in zip(video, rows, strict=True):
            place[:, :, :decoded] = row.video
        return video


def _encoded(rows: Sequence[Sample]) -> Encoded | None:
    """The cached latents that all rows have; None if there are none."""
    parts = set(rows[0].encoded).intersection(*(row.encoded for row in rows))
    if not parts:
        return None
    return Encoded(**{part: torch.stack([row.encoded[part] for row in rows]) for part in parts})

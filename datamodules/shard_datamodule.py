"""The LightningDataModule of folders of shards."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from ai_wam.errors import InvalidValue
from ai_wam.types import Batch, Clip, ClipEncoder
from datamodules.checks.epoch_coverage import FolderCoverage, cover
from datamodules.clip_dataset import ClipDataset, Collate, Decode, OnError
from datamodules.resumable_loader import Position, StreamLoader, leave_signals_to_parent
from datamodules.sampling import EpochPlan, EpochSampler, FixedSampler, spread
from datamodules.shards.clip_windows import Pad, Windows
from datamodules.shards.format import ShardError
from datamodules.shards.latent_cache import CACHES, PROMPTS, LatentCache, cache_settings, find_cache
from datamodules.shards.reader import ShardSet
from datamodules.shards.source_settings import describe, differences


class ShardDataModule(lightning.LightningDataModule):
    """Random windows of recorded episodes for training, fixed ones for validation, prediction and testing.

    The samples of a training epoch, their order, phrasings and views are a pure function of (seed, epoch,
    rank, step); the number of workers changes nothing. A checkpoint has the position in this stream and all
    settings that decide it: `fit` resumes with the very next batch, or refuses if the stream would differ.
    """

    def __init__(
        self,
        clip: Clip,
        train: str | list[str] | dict[str, float],
        val: str | list[str] | None = None,
        batch_size: int = 32,
        workers: int = 2,
        seed: int = 0,
        pad: Pad = "hold",
        decode: Decode = "all",
        views_per_sample: int | None = None,
        on_error: OnError = "raise",
        epoch_size: int | None = None,
        verify: bool = False,
        test: str | list[str] | None = None,
        window_every: int = 1,
        window_least: int = 1,
        cache: Literal["auto", "off"] = "auto",
    ) -> None:
        """Remember where the shards are.

        Args:
            clip: frames, stride, size and views of a sample; the model's.
            train: folders that `ai-wam collect` wrote. As a mapping, each with its share of an epoch;
                otherwise every window has the same chance.
            val: folders to validate on; no validation if left out.
            batch_size: samples per rank and step.
            workers: processes that decode; 0 decodes in the training process.
            seed: of the order, phrasings and views.
            pad: "hold": windows start anywhere, the last frame repeats past an episode's end, as if the robot
                held still; "none": only windows that lie in the episode.
            decode: "all" frames, or the "first" of each window only (the rest is zero and not valid): enough
                for the policy plan, and several times faster.
            views_per_sample: draw so many of the clip's views: for each training sample anew, for validation
                and test once per episode, always the same; all if left out.
            on_error: "raise" stops at a damaged sample; "skip" leaves it out, counts and reports it.
            epoch_size: samples per epoch over all ranks; every window once if left out.
            verify: compare every shard's checksum before the start.
            test: folders to evaluate a model on; read by `ai-wam test` only.
            window_every: recorded frames from the beginning of one training window to the next, so that
                faster recordings of one motion have more windows.
            window_least: frames of the clip that must be recorded in a training window, its first one
                included; an episode with fewer has no window. With pad "hold" and 1, windows that begin in an
                episode's last frame show nothing but a robot that holds still.
            cache: "auto" trains on latents that `ai-wam cache` stored with the shards, where all training
                folders have them; "off" never does.
        """
        super().__init__()
        self.clip, self.batch_size, self.workers, self.seed = clip, batch_size, workers, seed
        self.train, self.val = train, [val] if isinstance(val, str) else list(val or [])
        self.test = [test] if isinstance(test, str) else list(test or [])
        self.pad, self.decode, self.views_per_sample, self.on_error = pad, decode, views_per_sample, on_error
        self.epoch_size, self.verify, self.cache = epoch_size, verify, cache
        self.window_every, self.window_least = window_every, window_least
        self._train: ClipDataset | None = None
        self._val: ClipDataset | None = None
        self._test: ClipDataset | None = None
        self._sampler: EpochSampler | None = None
        self._saved: dict[str, Any] | None = None
        if (
            not self.val
        ):  # Lightning asks whether the hook is overridden and warns of an empty list of loaders
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
            self.predict_dataloader = super().predict_dataloader  # type: ignore[method-assign]
        if batch_size < 1 or window_every < 1 or workers < 0:
            raise InvalidValue(
                f"batch_size {batch_size} and window_every {window_every} must be at least 1, "
                f"workers {workers} at least 0"
            )
        if not 1 <= window_least <= clip.frames:
            raise InvalidValue(
                f"window_least {window_least} must lie between 1 and the clip's {clip.frames} frames"
            )

    def setup(self, stage: str) -> None:
        """Read the indices of the shards.

        Raises:
            ShardError: a folder that is missing, unfinished, of another schema or damaged.
            ValueError: recordings that do not fit the clip, a batch that does not fit the memory, or a test
                without test folders.
        """
        _check_memory(self.clip, self.batch_size, self.decode)
        if stage == "test":
            if not self.test:
                raise InvalidValue(
                    "`ai-wam test` evaluates on the shards that data.test names: give a folder"
                )
            self._test = self._dataset(self.test, dense=False)
            return
        if stage == "fit" and self._train is None:
            self._train = self.train_dataset(cached=True)
        if self._val is None and self.val:
            self._val = self._dataset(self.val, dense=False)

    def train_dataset(self, cached: bool = False) -> ClipDataset:
        """The windows trained on, with their caches if asked.

        Raises:
            ValueError: a view of the clip that no training episode has.
        """
        dataset = self._dataset(self._train_folders(), dense=True, cached=cached)
        _check_views(dataset.sets, self.clip)
        return dataset

    def captions(self, episodes: int = 2000) -> list[str]:
        """Phrasings of the training episodes, of so many of them at most, evenly spread over each folder."""
        sets, skip = self._ready(self._train, "train").sets, self.on_error == "skip"
        return sorted(set().union(*(source.captions(episodes, skip) for source in sets)))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Random windows, without replacement within a pass; resumes at a checkpoint's position.

        Raises:
            ValueError: the checkpoint belongs to another stream; the message says what differs.
        """
        dataset = self._ready(self._train, "train")
        plan = EpochPlan(dataset.windows_per_set(), self._weights(), self.epoch_size, self.seed)
        ranks, rank = self._ranks()
        self._sampler = EpochSampler(dataset, plan, self.batch_size, ranks, rank)
        if self._saved is not None:
            # A checkpoint from before `window_least` was an option had its default.
            _check_same_stream({"window_least": 1} | self._saved["stream"], self.stream())
            self._sampler.resume(**self._saved["position"])
            self._saved = None
        return self._loader(dataset, self._sampler)

    def coverage(self, epoch: int, steps: int | None = None) -> list[FolderCoverage]:
        """The coverage of each folder in an epoch: exact, since the stream is known beforehand.

        Args:
            epoch: its number, from 0.
            steps: its first batches only.
        """
        if self._sampler is None:
            raise RuntimeError("ShardDataModule: ask for train_dataloader() before its coverage")
        numbers = self._sampler.numbers(epoch)[:steps].flatten()
        return cover(self._ready(self._train, "train"), numbers)

    @property
    def position(self) -> Position | None:
        """The position in the stream of training batches; None before there is one."""
        return None if self._sampler is None else Position.of(self._sampler)

    def stream(self) -> dict[str, Any]:
        """Everything that decides the stream of training batches, as plain values."""
        dataset = self._ready(self._train, "train")
        weights: Sequence[float | None] = self._weights() or [None] * len(dataset.sets)
        folders = {
            f"folder {number}": {
                "content": source.digest,
                "episodes": len(source),
                "weight": weight,
                "latents": dataset.caches[number - 1].folder.name if dataset.caches else None,
            }
            for number, (source, weight) in enumerate(zip(dataset.sets, weights, strict=True), 1)
        }
        windows = ("window_every", "window_least")
        names = ("seed", "pad", "decode", "views_per_sample", "on_error", "epoch_size", *windows)
        limits = {} if self.trainer is None else _limits(self.trainer)
        return {
            "clip": describe(self.clip),
            "train": folders,
            "batch_size of all ranks": self.batch_size * self._ranks()[0],
            **{name: getattr(self, name) for name in names},
            **limits,
        }

    def state_dict(self) -> dict[str, Any]:
        """The stream and the position in it, for a checkpoint; empty if nothing was trained."""
        place = self.position
        return {} if place is None else {"stream": self.stream(), "position": place._asdict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's position; the stream is compared in `train_dataloader`."""
        self._saved = state_dict

    def val_dataloader(self) -> DataLoader[Batch]:
        """All windows, the same in every epoch, in an order that `limit_val_batches` may cut off anywhere."""
        return self._spread(self._ready(self._val, "val"))

    def test_dataloader(self) -> DataLoader[Batch]:
        """All windows, each on one rank, in an order that `limit_test_batches` may cut off anywhere."""
        return self._spread(self._ready(self._test, "test"))

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The validation windows, one after the other."""
        dataset = self._ready(self._val, "val")
        return self._loader(dataset, FixedSampler(dataset, *self._ranks()))

    def _spread(self, dataset: ClipDataset) -> DataLoader[Batch]:
        order = spread(dataset.windows_per_episode())
        return self._loader(dataset, FixedSampler(dataset, *self._ranks(), order))

    @property
    def skipped(self) -> int:
        """Damaged samples left out so far, by this rank's workers."""
        sets = (self._train, self._val, self._test)
        return sum(int(dataset.skipped) for dataset in sets if dataset is not None)

    def teardown(self, stage: str) -> None:
        """Report what was left out."""
        if self.skipped:
            lightning.pytorch.utilities.rank_zero_warn(f"{self.skipped} damaged samples were left out in all")

    def _weights(self) -> list[float] | None:
        return list(self.train.values()) if isinstance(self.train, Mapping) else None

    def _train_folders(self) -> list[str]:
        return [self.train] if isinstance(self.train, str) else list(self.train)

    def _dataset(self, folders: list[str], dense: bool, cached: bool = False) -> ClipDataset:
        sets = [ShardSet(folder, self.verify) for folder in folders]
        windows = Windows(self.clip, self.pad, dense, self.window_every, self.window_least)
        caches = self._caches(sets, windows) if cached else []
        dataset = ClipDataset(
            sets, windows, self.decode, self.views_per_sample, self.on_error, self.seed, caches
        )
        for folder, counts in zip(folders, dataset.windows_per_episode(), strict=True):
            if not counts.any():
                raise ShardError(
                    f"{folder}: no episode is long enough for a clip of {self.clip.frames} frames, "
                    f"{self.clip.seconds_per_frame:g} s apart; shorten the clip, lower window_least or use "
                    "pad: hold"
                )
            if without := int((counts == 0).sum()):
                rank_zero_info(f"{folder}: {without} of {len(counts)} episodes are too short for a window")
        return dataset

    def _caches(self, sets: list[ShardSet], windows: Windows) -> list[LatentCache]:
        """The fitting cache of every folder, if all have one; prints which are used, or why none is."""
        model = None if self.trainer is None else self.trainer.lightning_module
        beside = [source.folder / CACHES for source in sets]
        if self.cache == "off" or not isinstance(model, ClipEncoder) or not any(p.is_dir() for p in beside):
            return []
        for folder in beside:
            if (folder / PROMPTS).is_dir():
                model.keep_prompts(folder / PROMPTS)
        encoders, whole = model.encoders(), self.decode == "all"
        caches = []
        for source in sets:
            found = find_cache(source, cache_settings(encoders, source, windows, whole), self.verify)
            if found.cache is None:
                why = "\n  ".join(found.reasons or ["there is none"])
                rank_zero_info(
                    f"{source.folder}: no cache of latents fits this training, so all pictures are "
                    f"decoded and encoded; `ai-wam cache` makes one\n  {why}"
                )
                return []
            caches.append(found.cache)
        for cache in caches:
            rank_zero_info(f"latents come from {cache.folder} ({cache.settings['precision']})")
        return caches

    def _ready(self, dataset: ClipDataset | None, name: str) -> ClipDataset:
        if dataset is None:
            raise RuntimeError(f"ShardDataModule: call setup() before asking for {name} batches")
        return dataset

    def _ranks(self) -> tuple[int, int]:
        """Number of ranks, and this one's."""
        if self.trainer is not None:
            return self.trainer.world_size, self.trainer.global_rank
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_world_size(), torch.distributed.get_rank()
        return 1, 0

    def _loader(self, dataset: ClipDataset, sampler: DistributedSampler[Any]) -> DataLoader[Batch]:
        kind = StreamLoader if isinstance(sampler, EpochSampler) else DataLoader
        loader = kind(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=Collate(self.clip.frames),
            worker_init_fn=leave_signals_to_parent if self.workers else None,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # workers' seeds, which are unused, would come from the global one
        )
        return cast("DataLoader[Batch]", loader)


def _check_memory(clip: Clip, batch_size: int, decode: Decode) -> None:
    """Refuse a batch larger than the machine's memory, which would end in a killed process or in swapping."""
    frames = 1 if decode == "first" else clip.frames
    wanted = 4 * 3 * batch_size * len(clip.views) * frames * math.prod(clip.size)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if wanted > memory:
        raise InvalidValue(
            f"one batch of {batch_size} clips of {frames} frames takes {wanted / 1e9:.3g} GB of video, this "
            f"machine has {memory / 1e9:.3g} GB of memory; lower data.batch_size, clip.frames or clip.size"
        )


def _check_views(sets: Sequence[ShardSet], clip: Clip) -> None:
    """Refuse a view that all training episodes lack, which is a misspelt name."""
    recorded = {view for source in sets for entry, _ in source.episodes.alike() for view in entry.views}
    if unknown := [view for view in clip.views if view not in recorded]:
        raise InvalidValue(
            f"clip.views asks for {', '.join(map(repr, unknown))}, which no episode of the training folders "
            f"{[str(source.folder) for source in sets]} has; the recorded views are {sorted(recorded)}"
        )


def _limits(trainer: lightning.Trainer) -> dict[str, Any]:
    """The trainer's settings that decide where an epoch ends."""
    return {name: getattr(trainer, name) for name in ("limit_train_batches", "overfit_batches")}


def _check_same_stream(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if different := differences(saved, asked):
        lines = "\n  ".join(different)
        raise InvalidValue(
            "the checkpoint was trained on another stream of batches; in the checkpoint != asked for:"
            f"\n  {lines}\nResume with the same settings and shards; or begin anew from its weights: `ai-wam "
            "export-checkpoint`, then `ai-wam fit` with that backbone and without --ckpt_path."
        )

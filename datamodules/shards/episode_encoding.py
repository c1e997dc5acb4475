"""Encodes one episode as the files of a shard, after checks: episodes in shards are well-formed."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from ai_wam.episodes import Episode, Frame, Labels, View
from ai_wam.errors import InvalidValue
from ai_wam.files.json_yaml import check_characters
from ai_wam.utils.number_checks import check_numbers
from ai_wam.video import VideoEncoding, VideoWriter
from datamodules.reading.depth import DepthWriter, depth_member
from datamodules.reading.pictures_and_text import not_finite
from datamodules.reading.rotations import continuous_actions
from datamodules.shards.format import ACTIONS, CAMERAS, LABELS, LONGEST_NAME, META, SCHEMA, check_name
from datamodules.shards.frame_checks import check_cameras, checked_action
from datamodules.shards.label_members import label_arrays

_NOT_RECORDED = np.full(8, np.nan)


@dataclass(frozen=True)
class EpisodeMembers:
    """An episode's files and its entry in the index.

    Attributes:
        key: name of the episode.
        frames: number of frames.
        hz: frames per second.
        views: height and width by camera name.
        files: contents by what follows the key in the file's name.
    """

    key: str
    frames: int
    hz: float
    views: Mapping[str, tuple[int, int]]
    files: Mapping[str, bytes]


class _Rows:
    """A growing stack of small arrays of one shape, in one buffer.

    Thousands of small arrays, allocated between large pictures, would fragment the memory of the pictures.
    """

    def __init__(self, *shape: int) -> None:
        self._shape, self._bytes = shape, bytearray()

    def add(self, row: np.ndarray, what: str) -> None:
        if row.shape != self._shape:
            raise InvalidValue(f"{what} has shape {row.shape}, expected {self._shape}")
        self._bytes += row.astype(np.float64).tobytes()

    def stack(self) -> Float[np.ndarray, "t ..."]:
        return np.frombuffer(self._bytes).reshape(-1, *self._shape)


@dataclass
class _Track:
    """Video, matrices and depth of one camera so far."""

    video: VideoWriter
    intrinsics: _Rows = field(default_factory=lambda: _Rows(3, 3))
    poses: _Rows = field(default_factory=lambda: _Rows(4, 4))
    depth: DepthWriter | None = None

    def add_depth(self, depth: Float[np.ndarray, "h w"] | None, at: str) -> None:
        """Append a frame's depth; either every frame has depth or none."""
        if (depth is None) != (self.depth is None):
            raise InvalidValue(f"{at}: depth is {'missing' if depth is None else 'there'}, unlike before")
        if depth is not None and self.depth is not None:
            self.depth.add(depth, at)


def encode_episode(episode: Episode, encoding: VideoEncoding) -> EpisodeMembers:
    """Compress an episode, frame by frame.

    Raises:
        ValueError: a malformed episode; the message names it and the frame.
    """
    where = f"episode {episode.key!r}"
    _check_head(episode, where)
    tracks: dict[str, _Track] = {}
    actions, frames, begin = _Rows(8), 0, 0.0
    for number, frame in enumerate(episode.frames):
        at = f"{where}, frame {number}"
        begin = frame.seconds if number == 0 else begin
        _check_time(frame.seconds - begin, number, episode.hz, at)
        if number == 0:
            tracks = {
                name: _open_track(name, view, episode.hz, encoding, at) for name, view in frame.views.items()
            }
        _add_views(tracks, frame, at)
        action = _NOT_RECORDED if frame.action is None else checked_action(frame.action, at)
        actions.add(action, f"{at}: action")
        frames = number + 1
    if not frames:
        raise InvalidValue(f"{where} has no frames")
    files = {f"{name}.mp4": track.video.finish() for name, track in tracks.items()}
    depths = {name: track.depth for name, track in tracks.items()}
    files |= {depth_member(name): depth.finish() for name, depth in depths.items() if depth is not None}
    files[CAMERAS] = _npz(
        {key: value for name, track in tracks.items() for key, value in _cameras(name, track, where)}
    )
    if (recorded := _stack_actions(actions.stack(), where)) is not None:
        files[ACTIONS] = npy(recorded)
    if episode.labels is not None:
        files[LABELS] = _labels(episode.labels, frames, where)
    views = {name: track.video.size for name, track in tracks.items()}
    files[META] = _meta(episode, frames, views, recorded is not None, where)
    return EpisodeMembers(episode.key, frames, float(episode.hz), views, files)


def _check_head(episode: Episode, where: str) -> None:
    check_name(episode.key, "the key of an episode")
    check_numbers(where, above=0, hz=episode.hz)
    if not episode.instructions:
        raise InvalidValue(f"{where} has no instruction; give the empty string where none is known")
    if odd := [text for text in episode.instructions if not isinstance(text, str)]:
        raise InvalidValue(f"{where}: the instruction {odd[0]!r} must be a text")


def _check_time(seconds: float, number: int, hz: float, at: str) -> None:
    if abs(seconds - number / hz) > 0.5 / hz:
        raise InvalidValue(
            f"{at}: {seconds:.4f} s after the first frame, expected {number / hz:.4f} s at {hz:g} Hz; "
            "resample the recording or correct its hz"
        )


def _open_track(name: str, view: View, hz: float, encoding: VideoEncoding, at: str) -> _Track:
    check_name(name, f"{at}: view")
    size = (view.image.shape[0], view.image.shape[1])
    depth = None if view.depth is None else DepthWriter(size)
    return _Track(VideoWriter(size, hz, encoding), depth=depth)


def _add_views(tracks: Mapping[str, _Track], frame: Frame, at: str) -> None:
    if not tracks or set(frame.views) != set(tracks):
        raise InvalidValue(f"{at}: views {sorted(frame.views)}, but the episode began with {sorted(tracks)}")
    for name, view in frame.views.items():
        track = tracks[name]
        if view.image.shape[:2] != track.video.size:
            raise InvalidValue(
                f"{at}, view {name!r}: image of {view.image.shape[:2]} pixels (h, w), the first had "
                f"{track.video.size}"
            )
        track.video.add(view.image)
        track.intrinsics.add(view.intrinsics, f"{at}, view {name!r}: K")
        track.poses.add(view.world_from_camera, f"{at}, view {name!r}: world_from_camera")
        track.add_depth(view.depth, f"{at}, view {name!r}")


def _cameras(name: str, track: _Track, where: str) -> list[tuple[str, Float[np.ndarray, "t n n"]]]:
    """Names and stacks of K and world_from_camera, of one entry where the camera never moved."""
    k, e = track.intrinsics.stack(), track.poses.stack()
    check_cameras(k, e, f"{where}, view {name!r}")
    stacks = {f"{name}.intrinsics": k, f"{name}.world_from_camera": e}
    still = all(np.array_equal(m, np.broadcast_to(m[:1], m.shape), equal_nan=True) for m in stacks.values())
    return [(key, (stack[:1] if still else stack).astype(np.float32)) for key, stack in stacks.items()]


def _stack_actions(actions: Float[np.ndarray, "t 8"], where: str) -> Float[np.ndarray, "t 8"] | None:
    missing = np.isnan(actions[:, 0])
    if missing.all():
        return None
    if missing.any():
        raise InvalidValue(
            f"{where}: frame {int(missing.argmax())} has no action, others have; give all of them or none"
        )
    return continuous_actions(actions).astype(np.float32)


def _meta(
    episode: Episode, frames: int, views: Mapping[str, tuple[int, int]], actions: bool, where: str
) -> bytes:
    if (key := not_finite(episode.provenance)) is not None:
        raise InvalidValue(
            f"{where}: the value of {key!r} in its provenance is NaN or infinity, which JSON does not hold; "
            "give a number, text or null"
        )
    meta = {
        "schema": SCHEMA,
        "key": episode.key,
        "frames": frames,
        "hz": float(episode.hz),
        "instructions": list(episode.instructions),
        "views": {name: list(size) for name, size in views.items()},
        "actions": actions,
        "provenance": dict(episode.provenance),
    }
    try:
        text = json.dumps(meta, sort_keys=True, allow_nan=False)
        check_characters(meta)
    except (TypeError, ValueError) as error:
        raise InvalidValue(f"{where}: provenance must hold JSON values only: {error}") from error
    names = [f"{episode.key}.{depth_member(name)}" for name in views]
    if long := [name for name in names if len(name) > LONGEST_NAME]:
        raise InvalidValue(
            f"{where}: file name {long[0]!r} has more than {LONGEST_NAME} characters; shorten the key"
        )
    if len({name.lower() for name in views}) < len(views):
        raise InvalidValue(
            f"{where}: views {sorted(views)} differ in case only, which WebDataset does not tell apart"
        )
    return text.encode()


def _labels(labels: Labels, frames: int, where: str) -> bytes:
    try:
        labels.check(frames)
    except ValueError as error:
        raise InvalidValue(f"{where}: {error}") from error
    return _npz(label_arrays(labels))


def npy(array: np.ndarray) -> bytes:
    """The array as a .npy file, never pickled."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # the stub takes `allow_pickle` for one of them
    return buffer.getvalue()

"""Reads BridgeData V2's raw folders.

    <path>/.../<date>/raw/traj_group0/traj0/obs_dict.pkl       full_state [t, 7], time_stamp [t] and more
                                           /images0/im_0.jpg   one folder per camera
                                           /lang.txt           phrasings, and a line "confidence: ..."
                                           /cameras.json       ours, where cameras were estimated

The world is the robot's base. `full_state` is x y z, roll pitch yaw, openness (1 = open). Its angles are zero
where the WidowX points down; the poses given here are those of the tool's own axes, x along the fingers. The
data set has no calibration: without `cameras.json` (see `datamodules.cameras.calibration`) a view's
matrices are NaN, a lost calibration. `time_stamp`, where a recording has it, says when each step was taken,
in seconds.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from ai_wam.episodes import Episode, Frame, SourceCard, View
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath, as_path
from ai_wam.files.json_yaml import read_json
from datamodules.cameras.calibration import Calibration
from datamodules.reading.pictures_and_text import (
    by_numbers,
    check_finite,
    check_stride,
    numbered,
    read_lines,
    read_picture,
)
from datamodules.reading.rotations import euler_xyz, to_quaternion
from datamodules.reading.safe_pickle import load_pickle
from datamodules.reading.view_names import Views, chosen_views, unrenamed

HZ = 5.0
_DOWN = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # the tool's axes where all angles are zero
_STATES, _TIMES = "obs_dict.pkl", "time_stamp"
_GAP = 2.5  # usual steps: a longer one lost a picture at least
_RATE = 2.0  # the usual step may be so many times longer or shorter than 1 / HZ


class Bridge:
    """Every trajectory below a folder, in the order of their paths."""

    card = SourceCard(
        title="BridgeData V2",
        licence="cc-by-4.0",
        homepage="https://rail-berkeley.github.io/bridgedata",
        citation="Walke et al., BridgeData V2: A Dataset for Robot Learning at Scale, arXiv 2308.12952",
        defects=("It has no calibrations: cameras were estimated afterwards.",),
    )

    def __init__(
        self,
        path: str,
        views: Views = None,
        cameras: str = "cameras.json",
        slack: int = 0,
        stride: int = 1,
        gaps: bool = False,
    ) -> None:
        """List the trajectories; none is read yet.

        Args:
            path: any folder above the dated ones.
            views: such as images0, or names for them, such as {images0: front}; all that a trajectory has if
                left out.
            cameras: name of the side file in a trajectory's folder.
            slack: pictures by which a view may have more or fewer than there are states; the end is cut.
            stride: take every n-th frame.
            gaps: accept episodes whose time stamps are uneven, as if they were even; refused if false.

        Raises:
            ValueError: no trajectories, or a stride that is not above 0.
        """
        check_stride(stride, HZ)
        self.path, self.views, self.cameras, self.slack, self.stride = path, views, cameras, slack, stride
        self.gaps = gaps
        self._root = as_path(path)
        found = (each for each in self._root.glob("**/raw/traj_group*/traj*") if each.is_dir())
        self._folders: list[AnyPath] = sorted(
            found, key=lambda folder: [by_numbers(part) for part in folder.parts]
        )
        if not self._folders:
            raise InvalidValue(
                f"{path} holds no trajectories; expected .../<date>/raw/traj_group<N>/traj<M>/{_STATES}"
            )

    def __len__(self) -> int:
        return len(self._folders)

    def __getitem__(self, index: int) -> Episode:
        folder = self._folders[index]
        place = "/".join(folder.parts[len(self._root.parts) :])
        content = _read_content(folder / _STATES)
        actions = _read_actions(content, folder / _STATES)
        if not self.gaps:
            _check_times(content, len(actions), folder / _STATES)
        views = self._views(folder)
        pictures = {ours: self._pictures(folder / name, len(actions)) for name, ours in views.items()}
        cameras = self._read_cameras(folder, views, pictures)
        numbers = range(0, min([len(actions), *map(len, pictures.values())]), self.stride)
        session = folder.parents[2]  # the dated folder
        digest = hashlib.sha256(place.encode()).hexdigest()[:8]  # names repeat from session to session
        return Episode(
            f"{session.name}-{folder.parent.name}-{folder.name}-{digest}",
            _frames(pictures, cameras, actions, numbers),
            _instructions(folder / "lang.txt"),
            HZ / self.stride,
            {"source": "bridge", "path": place, "calibrated": sorted(cameras)},
        )

    def _views(self, folder: AnyPath) -> dict[str, str]:
        there = [view.name for view in sorted(folder.glob("images[0-9]*"), key=numbered)]
        return chosen_views(self.views, unrenamed(there), folder)

    def _pictures(self, folder: AnyPath, states: int) -> list[AnyPath]:
        """A view's files, in order and without a gap."""
        files = sorted((f for f in folder.glob("im_*") if f.suffix in (".jpg", ".png")), key=numbered)
        gaps = [n for n, file in enumerate(files) if file.stem != f"im_{n}"]
        if gaps or not files:
            raise InvalidValue(
                f"{folder}: picture im_{gaps[0] if gaps else 0} is missing; copy the trajectory again, or "
                "leave the view out"
            )
        if abs(len(files) - states) > self.slack:
            raise InvalidValue(
                f"{folder} has {len(files)} pictures, {_STATES} {states} states; copy the trajectory again, "
                f"or allow a difference (slack: {abs(len(files) - states)})"
            )
        return files

    def _read_cameras(
        self, folder: AnyPath, views: Mapping[str, str], pictures: Mapping[str, list[AnyPath]]
    ) -> dict[str, Calibration]:
        """The calibrated views, by our names; the side file has the layout's names."""
        path = folder / self.cameras
        if not path.exists():
            return {}
        entries, found = read_json(path), {}
        there = {view.name for view in folder.glob("images[0-9]*")}
        if strange := sorted(set(entries) - there):
            raise InvalidValue(
                f"{path} has cameras {strange}, but the trajectory has the views {sorted(there)}; call each "
                "camera as the folder of its pictures"
            )
        for name, ours in views.items():
            if name not in entries:
                continue
            at, files = f"{path}, camera {name!r}", pictures[ours]
            found[ours] = Calibration.read(entries[name], at)
            height, width = read_picture(files[0]).shape[:2]
            found[ours].check_size(files[0].name, (height, width), at)
            for what, length in found[ours].lengths(name).items():
                if length < len(files):
                    raise InvalidValue(
                        f"{path}: {what} has {length} matrices for {len(files)} pictures; give one, or one "
                        "per picture"
                    )
        return found


def _read_content(path: AnyPath) -> dict[str, Any]:
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise InvalidValue(
            f"{path} holds a {type(content).__name__}, expected a dictionary; copy the trajectory again"
        )
    return content


def _numbers(content: Mapping[str, Any], key: str, path: AnyPath) -> np.ndarray:
    try:
        return np.asarray(content.get(key), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidValue(f"{path}: {key!r} holds no numbers ({error}); copy it again") from error


def _check_times(content: Mapping[str, Any], steps: int, path: AnyPath) -> None:
    """Check that steps are even at about 5 Hz; episodes without time stamps pass."""
    if content.get(_TIMES) is None:
        return
    times, way = _numbers(content, _TIMES, path), "leave the trajectory out, or take it as it is (gaps: true)"
    if times.shape != (steps,) or not np.isfinite(times).all():
        raise InvalidValue(
            f"{path}: {_TIMES!r} has shape {times.shape}, expected {steps} finite seconds; {way}"
        )
    taken = np.diff(times)
    if not len(taken):
        return
    usual = float(np.median(taken))
    limit = _GAP * max(usual, 1 / HZ)
    odd = np.flatnonzero((taken <= 0) | (taken > limit))
    if len(odd):
        step = int(odd[0])
        raise InvalidValue(
            f"{path}: step {step + 1} was taken {taken[step]:.3g} s after step {step}, expected more than 0 "
            f"and at most {limit:.3g} s (others take {usual:.3g} s); {way}"
        )
    if not 1 / _RATE < usual * HZ < _RATE:
        raise InvalidValue(
            f"{path}: steps follow after {usual:.3g} s, but this source reads {HZ:g} steps per second; {way}"
        )


def _read_actions(content: Mapping[str, Any], path: AnyPath) -> Float[np.ndarray, "t 8"]:
    states = _numbers(content, "full_state", path)
    if states.ndim != 2 or states.shape[1] != 7 or not len(states):
        raise InvalidValue(
            f"{path}: 'full_state' has shape {states.shape}, expected [t, 7]: x y z, roll pitch yaw, "
            "openness; copy the trajectory again"
        )
    check_finite(states, f"{path}, 'full_state'")
    rotations = (euler_xyz(states[:, 3:6], f"{path}, 'full_state'") @ _DOWN).reshape(-1, 9)
    openness = states[:, 6:].clip(0, 1)  # the gripper's sensor reaches a little beyond its stops
    return np.concatenate([states[:, :3], to_quaternion(rotations, "matrix", str(path)), openness], axis=1)


def _instructions(path: AnyPath) -> tuple[str, ...]:
    """Phrasings; a trajectory without any has no file."""
    if not path.exists():
        return ("",)
    lines = (line.strip() for line in read_lines(path))
    return tuple(dict.fromkeys(line for line in lines if line and not line.startswith("confidence"))) or ("",)


def _frames(
    pictures: Mapping[str, list[AnyPath]],
    cameras: Mapping[str, Calibration],
    actions: Float[np.ndarray, "t 8"],
    numbers: range,
) -> Iterator[Frame]:
    lost = (np.full((3, 3), np.nan), np.full((4, 4), np.nan))
    for number in numbers:
        views = {}
        for name, files in pictures.items():
            picture = read_picture(files[number])
            known = cameras.get(name)
            views[name] = View(picture, *lost) if known is None else known.view(picture, number)
        yield Frame(views, actions[number], number / HZ)

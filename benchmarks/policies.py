"""Policies without a model, as references: hold still, replay recorded actions, the scripted expert."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.errors import InvalidValue
from ai_wam.files.numpy_arrays import read_npz
from ai_wam.types import ActionChunk, Observation
from benchmarks.simulator import CHANGED, Simulator, SimulatorCrash, Trial


class HoldStill:
    """The floor: hold the tool's current pose.

    Args:
        dt: seconds until the pose is commanded again; any value has the same effect.
    """

    def __init__(self, dt: float = 1.0) -> None:
        self.dt = dt

    def reset(self, episodes: Sequence[str]) -> None:
        """Does nothing: no state is kept between chunks."""

    def predict_action(self, observation: Observation) -> ActionChunk:
        """One action: the current pose."""
        return _chunk(observation.action[:, None], self.dt)


class Replay:
    """Replays recorded actions, found by the episode's name and the time that has passed.

    Args:
        recorded_actions: poses and openness [t 8] by episode, number i at time i * dt; or a path to an `.npz`
            file of them.
        dt: seconds between two recorded actions.
        horizon: actions of one chunk; all that are left if None.
        tokenizer: if given, the actions are drawn as action images for the observation's cameras and read
            back, so that the chunk carries the codec's error and validity.
    """

    def __init__(
        self,
        recorded_actions: Mapping[str, Float[np.ndarray, "t 8"]] | str | Path,
        dt: float = 0.2,
        horizon: int | None = None,
        tokenizer: ActionImageTokenizer | None = None,
    ) -> None:
        if isinstance(recorded_actions, str | Path):
            recorded_actions = read_npz(Path(recorded_actions).read_bytes(), str(recorded_actions))
        for name, actions in recorded_actions.items():
            if actions.ndim != 2 or actions.shape[1] != 8 or not np.isfinite(actions).all():
                found = f"an array {actions.shape} of {actions.dtype}"
                raise InvalidValue(f"replay: {name!r} is {found}, expected finite numbers [t, 8]")
        self.recorded_actions = dict(recorded_actions)
        self.dt = dt
        self.horizon = horizon
        self.tokenizer = tokenizer

    def reset(self, episodes: Sequence[str]) -> None:
        """Check that actions of the episodes are recorded.

        Raises:
            ValueError: an episode that was not recorded.
        """
        if missing := [name for name in episodes if name not in self.recorded_actions]:
            raise InvalidValue(
                f"replay: no recorded actions of {missing[:3]} ({len(missing)} of {len(episodes)} missing; "
                f"{len(self.recorded_actions)} are recorded); record those episodes or run the trials that "
                "were"
            )

    def predict_action(self, observation: Observation) -> ActionChunk:
        """The recorded actions from now on; rows with fewer of them left repeat their last action."""
        pieces = [
            self._from_now_on(self.recorded_actions[name], float(seconds))
            for name, seconds in zip(observation.episodes, observation.seconds, strict=True)
        ]
        length = max(len(piece) for piece in pieces)
        padded = [
            np.concatenate([piece, np.repeat(piece[-1:], length - len(piece), axis=0)]) for piece in pieces
        ]
        actions = torch.from_numpy(np.stack(padded)).to(observation.action)
        return (
            _chunk(actions, self.dt) if self.tokenizer is None else self._through_codec(observation, actions)
        )

    def _from_now_on(self, actions: Float[np.ndarray, "t 8"], seconds: float) -> Float[np.ndarray, "a 8"]:
        first = min(round(seconds / self.dt) + 1, len(actions) - 1)
        return actions[first:][: self.horizon]

    def _through_codec(self, observation: Observation, actions: torch.Tensor) -> ActionChunk:
        """The actions drawn and decoded, row by row: long rows are large, and may miss different views."""
        with_start = torch.cat([observation.action[:, None], actions], dim=1)
        rows = [self._row_through_codec(observation, with_start, row) for row in range(len(actions))]
        decoded, valid, confidence, std, images = (torch.cat(parts) for parts in zip(*rows, strict=True))
        return ActionChunk(
            actions=decoded[:, 1:].float(),
            valid=valid[:, 1:],
            confidence=confidence[:, 1:].float(),
            dt=self.dt,
            generated={"action_images": images * 2 - 1},
            position_std=std[:, 1:].float(),
        )

    def _row_through_codec(
        self, observation: Observation, actions: torch.Tensor, row: int
    ) -> tuple[torch.Tensor, ...]:
        assert self.tokenizer is not None
        t, mask = actions.shape[1], observation.view_mask[row]
        h, w = observation.video.shape[-2], observation.video.shape[-1]
        cameras = observation.cameras.map(
            lambda matrix: matrix[row : row + 1, mask, -1:].expand(-1, -1, t, -1, -1)
        )
        images = self.tokenizer.encode(actions[row : row + 1], cameras, (h, w))
        decoded = self.tokenizer.decode(images, cameras)
        all_views = images.new_zeros(1, len(mask), *images.shape[2:])
        all_views[:, mask] = images
        return decoded.actions, decoded.valid, decoded.confidence, decoded.position_std, all_views


class MeanDemonstration:
    """The blind floor: the mean of training demonstrations of a task's variation, replayed without looking.

    Every demonstration is stretched to the same number of steps; positions are averaged there, quaternions
    as unit vectors on one side of the sphere, and the gripper is open where most demonstrations have it open.
    What this solves needs no eyes.

    Args:
        simulator: demonstrates in scenes of the split "train"; copied when first needed.
        demonstrations: how many are averaged for each task and variation.
        stride: control steps from one action to the next.
        max_seconds: longest demonstration, simulated seconds; the mean's last pose is held until then.
        horizon: actions of one chunk; all that are left if None.
    """

    def __init__(
        self,
        simulator: Simulator,
        demonstrations: int = 8,
        stride: int = 4,
        max_seconds: float = 8.0,
        horizon: int | None = None,
    ) -> None:
        if demonstrations < 1:
            raise InvalidValue(f"MeanDemonstration: demonstrations is {demonstrations}; the least is 1")
        self.simulator, self.demonstrations = simulator, demonstrations
        self.stride, self.max_seconds = stride, max_seconds
        self._expert: Expert | None = None
        self._means: dict[tuple[str, int], Float[np.ndarray, "t 8"]] = {}
        self._replay = Replay({}, stride / simulator.control_hz, horizon)

    def reset(self, episodes: Sequence[str]) -> None:
        """Average the demonstrations of the trials' tasks and variations, once each.

        Raises:
            ValueError: an episode whose name is no trial's.
        """
        for name in episodes:
            trial = Trial.from_id(name)
            what = (trial.task, trial.variation)
            if what not in self._means:
                self._means[what] = self._mean(*what)
            self._replay.recorded_actions[name] = self._means[what]

    def predict_action(self, observation: Observation) -> ActionChunk:
        """The mean demonstration from now on."""
        return self._replay.predict_action(observation)

    def close(self) -> None:
        """Release its world."""
        if self._expert is not None:
            self._expert.close()

    def _mean(self, task: str, variation: int) -> Float[np.ndarray, "t 8"]:
        expert = self._expert = self._expert or Expert(self.simulator, self.stride, self.max_seconds)
        trials = [Trial(task, variation, index, "train") for index in range(self.demonstrations)]
        mean = mean_path([expert.demonstration(trial) for trial in trials])
        # Equally long, so that no row of a batch depends on the others.
        whole = math.ceil(self.max_seconds * self.simulator.control_hz / self.stride) + 1
        return np.concatenate([mean, np.repeat(mean[-1:], max(0, whole - len(mean)), axis=0)])


def mean_path(paths: Sequence[Float[np.ndarray, "_ 8"]]) -> Float[np.ndarray, "t 8"]:
    """The mean of paths of actions, each stretched to their mean length; see `MeanDemonstration`."""
    length = round(float(np.mean([len(path) for path in paths])))
    stretched = np.stack([_stretched(path, length) for path in paths])
    mean: Float[np.ndarray, "t 8"] = stretched.mean(axis=0)
    turns = stretched[..., 3:7]
    along = (turns * turns[:1]).sum(axis=-1, keepdims=True) >= 0
    total = np.where(along, turns, -turns).sum(axis=0)
    mean[:, 3:7] = total / np.linalg.norm(total, axis=-1, keepdims=True)
    mean[:, 7] = mean[:, 7] > 0.5
    return mean


def _stretched(path: Float[np.ndarray, "_ 8"], length: int) -> Float[np.ndarray, "t 8"]:
    places = np.linspace(0, len(path) - 1, length)
    same = path.copy()  # neighbouring quaternions on one side, so that what lies between them is between
    for i in range(1, len(same)):
        same[i, 3:7] *= 1 if same[i, 3:7] @ same[i - 1, 3:7] >= 0 else -1
    return np.stack([np.interp(places, np.arange(len(path)), column) for column in same.T], axis=1)


class Expert:
    """The scripted expert as a policy: it solves each trial, then replays the demonstration.

    A benchmark calls `solve` with the world that runs the trial, since a seed alone does not restore the
    scenes of every simulator. A reset without that solves the trial in a world of the expert's own.

    With a tokenizer this is the ceiling of every model that acts by action images: the demonstration through
    the same codec, at the same rate, with the same controller.

    Args:
        simulator: prototype of the expert's own world, copied when first needed.
        stride: control steps from one action to the next, as in the model's clip.
        max_seconds: longest demonstration, simulated seconds.
        horizon: actions of one chunk; the whole rest of the demonstration if None.
        tokenizer: as in `Replay`.
    """

    def __init__(
        self,
        simulator: Simulator,
        stride: int = 4,
        max_seconds: float = 8.0,
        horizon: int | None = None,
        tokenizer: ActionImageTokenizer | None = None,
    ) -> None:
        self.simulator = simulator
        self.stride = stride
        self.max_seconds = max_seconds
        self.horizon = horizon
        self.tokenizer = tokenizer
        self._own: Simulator | None = None
        self._solved: set[str] = set()  # since their last reset, in the worlds that run them
        self._replay = Replay({}, stride / simulator.control_hz, horizon, tokenizer)

    def reset(self, episodes: Sequence[str]) -> None:
        """Solve the named trials that are not solved yet.

        Raises:
            ValueError: an episode whose name is no trial's.
        """
        for name in episodes:
            if name not in self._solved:
                self._own = self._own or copy.deepcopy(self.simulator)
                trial = Trial.from_id(name)
                self._own.reset(trial)
                self.solve(self._own, trial)
            self._solved.discard(name)

    def solve(self, world: Simulator, trial: Trial) -> None:
        """Solve a trial in a world that was just reset to it, and reset the world again.

        Raises:
            SimulatorCrash: the world was lost, or its scene was not restored.
        """
        scene = world.scene()
        self._replay.recorded_actions[trial.id] = self._demonstrate(world)
        world.reset(trial)
        if world.scene() != scene or scene.startswith(CHANGED):
            raise SimulatorCrash(
                f"{trial.id}: scene {scene} came back as {world.scene()}: it is another one's demonstration"
            )
        self._solved.add(trial.id)

    def demonstration(self, trial: Trial) -> Float[np.ndarray, "t 8"]:
        """Actions that solve a trial in a world of the expert's own, from its first pose on."""
        self._own = self._own or copy.deepcopy(self.simulator)
        self._own.reset(trial)
        return self._demonstrate(self._own)

    def predict_action(self, observation: Observation) -> ActionChunk:
        """The demonstration from now on."""
        return self._replay.predict_action(observation)

    def close(self) -> None:
        """Release its own world."""
        if self._own is not None:
            self._own.close()

    def _demonstrate(self, world: Simulator) -> Float[np.ndarray, "t 8"]:
        """Poses reached in a demonstration, every `stride` control steps, the first and last one included."""
        poses = list(self._poses(world))
        kept = poses[:: self.stride]
        if (len(poses) - 1) % self.stride:
            kept.append(poses[-1])
        return np.stack(kept)

    def _poses(self, world: Simulator) -> Iterator[Float[np.ndarray, "8"]]:
        yield world.pose()
        for action in islice(world.demonstrate(), round(self.max_seconds * world.control_hz)):
            world.step(action)
            yield world.pose()


def _chunk(actions: torch.Tensor, dt: float) -> ActionChunk:
    sure = torch.ones(actions.shape[:2], device=actions.device)
    return ActionChunk(
        actions=actions, valid=sure.bool(), confidence=sure, dt=dt, generated={}, position_std=1 - sure
    )

"""A shift: what a test's scenes differ in from the training's, composed of parts and drawn per trial."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ai_wam.errors import InvalidValue
from benchmarks.shifts import parts
from benchmarks.simulator import Trial

_STREAM = 2  # after a trial's scene and its start


@dataclass(frozen=True)
class Shift:
    """Parts that a test's scenes differ in; those left out stay as in training.

    Every part is drawn from the trial's seed and its own name, so that a trial has the same cameras whether
    or not its lights differ too, for every policy.

    Attributes:
        cameras: fixed cameras moved.
        light: lamps.
        appearance: colours of table, background and robot, shades of objects.
        distractors: objects that the task does not know.
        start: the robot's first pose.
        layout: objects outside the box of training.
        instruction: phrasings that training does not use.
        views: cameras lost.
        sensor: noise, blur, JPEG, exposure, latency.
        calibration: errors of the cameras' poses as given to the policy.
    """

    cameras: parts.CameraShift | None = None
    light: parts.LightShift | None = None
    appearance: parts.AppearanceShift | None = None
    distractors: parts.DistractorShift | None = None
    start: parts.StartShift | None = None
    layout: parts.LayoutShift | None = None
    instruction: parts.InstructionShift | None = None
    views: parts.ViewShift | None = None
    sensor: parts.SensorShift | None = None
    calibration: parts.CalibrationShift | None = None

    def __post_init__(self) -> None:
        if not self.parts:
            names = [field.name for field in dataclasses.fields(self)]
            raise InvalidValue(f"shift: it has no part; give at least one of {names}, or no shift")

    @property
    def parts(self) -> dict[str, parts.ShiftPart]:
        """The parts that there are, by name."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: part for name, part in found.items() if part is not None}

    def draw(self, trial: Trial, views: Sequence[str]) -> dict[str, Any]:
        """A trial's values by part, as JSON.

        Args:
            trial: which one.
            views: names of the simulator's cameras.
        """
        return {
            name: part.draw(np.random.default_rng([trial.seed, _STREAM, zlib.crc32(name.encode())]), views)
            for name, part in self.parts.items()
        }

    def describe(self) -> dict[str, Any]:
        """The parts and their ranges, as JSON."""
        return {name: _plain(dataclasses.asdict(part)) for name, part in self.parts.items()}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

"""Kinds of differences between the scenes of a test and of training: their ranges, and how they are drawn.

A range is two numbers, the least and the largest; a value is drawn uniformly between them for every trial.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ai_wam.errors import InvalidValue
from benchmarks.simulator import WRIST

Range = tuple[int | float, int | float]
_NOTHING, _ONE = (0.0, 0.0), (1.0, 1.0)


@dataclass(frozen=True)
class ShiftPart(ABC):
    """One kind of difference.

    Attributes:
        limits: by the name of a field that is a range, what its numbers must lie between.
        of_scene: whether the simulator must build it; else it is made of the frames that the policy gets.
        counts: names of the ranges of which whole numbers are drawn.
    """

    limits: ClassVar[Mapping[str, Range]]
    of_scene: ClassVar[bool]
    counts: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, (least, largest) in self.limits.items():
            low, high = (float(value) for value in getattr(self, name))
            if not least <= low <= high <= largest:  # false for NaN too
                raise InvalidValue(
                    f"shift: {name} of {type(self).__name__} is [{low:g}, {high:g}]; it is a range of two "
                    f"numbers, least and largest, between {least:g} and {largest:g}"
                )
            if name in self.counts and not (low.is_integer() and high.is_integer()):
                raise InvalidValue(
                    f"shift: {name} of {type(self).__name__} is [{low:g}, {high:g}]; it counts things: give "
                    "whole numbers"
                )
            object.__setattr__(self, name, (low, high))

    @abstractmethod
    def draw(self, rng: np.random.Generator, views: Sequence[str]) -> dict[str, Any]:
        """A trial's values, as JSON.

        Args:
            rng: of this trial and part.
            views: the cameras of the simulator.
        """

    def _between(self, rng: np.random.Generator, name: str) -> float:
        return round(float(rng.uniform(*getattr(self, name))), 6)

    def _count(self, rng: np.random.Generator, name: str) -> int:
        low, high = getattr(self, name)
        return int(rng.integers(int(low), int(high) + 1))


def check_known(owner: str, views: Sequence[str], known: Sequence[str]) -> None:
    """Refuse cameras that there are not.

    Raises:
        ValueError: the message lists those that there are.
    """
    if unknown := [view for view in views if view not in known]:
        raise InvalidValue(f"shift: {owner} names the views {unknown}; the cameras are {list(known)}")


@dataclass(frozen=True)
class CameraShift(ShiftPart):
    """Fixed cameras moved around the middle of the workspace; each is drawn by itself.

    Attributes:
        azimuth: degrees around the vertical axis, to one side or the other with equal probability.
        elevation: degrees added to the camera's height angle over the horizon.
        distance: factor of the distance from the workspace's middle.
        fov: factor of the field of view, after framing.
        roll: degrees about the line of sight.
        framed: whether a moved camera is aimed at the workspace again, with the smallest field of view that
            shows all of it; else it keeps its field of view and turns rigidly about the workspace's middle.
        views: names of the cameras to move; all fixed ones if empty.
    """

    limits: ClassVar[Mapping[str, Range]] = {
        "azimuth": (0.0, 180.0),
        "elevation": (-60.0, 60.0),
        "distance": (0.25, 4.0),
        "fov": (0.25, 4.0),
        "roll": (-180.0, 180.0),
    }
    of_scene: ClassVar[bool] = True

    azimuth: Range = _NOTHING
    elevation: Range = _NOTHING
    distance: Range = _ONE
    fov: Range = _ONE
    roll: Range = _NOTHING
    framed: bool = True
    views: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if WRIST in self.views:
            raise InvalidValue("shift: cameras moves the fixed cameras; the wrist camera rides on the hand")

    def draw(self, rng: np.random.Generator, views: Sequence[str]) -> dict[str, Any]:
        """Values by the camera's name, and whether cameras are framed again."""
        check_known("cameras", self.views, views)
        drawn = {
            view: {
                "azimuth": self._between(rng, "azimuth") * int(rng.choice([-1, 1])),
                **{name: self._between(rng, name) for name in ("elevation", "distance", "fov", "roll")},
            }
            for view in views
            if view != WRIST
        }
        return {
            "framed": self.framed,
            "views": {view: drawn[view] for view in drawn if not self.views or view in self.views},
        }


@dataclass(frozen=True)
class LightShift(ShiftPart):
    """Lamps.

    Attributes:
        lamps: how many there are; those beyond the first shine from random directions. RLBench's own count as
            one and turn together.
        tilt: degrees between the first lamp's direction and the usual one, to any side.
        strength: factor of the brightness of all light.
        colour: largest share taken off a colour channel of the lamps, drawn per channel.
        shadows: whether lamps cast shadows; as the simulator is set up if null.
    """

    limits: ClassVar[Mapping[str, Range]] = {
        "lamps": (1.0, 4.0),
        "tilt": (0.0, 80.0),
        "strength": (0.2, 3.0),
        "colour": (0.0, 0.9),
    }
    of_scene: ClassVar[bool] = True
    counts: ClassVar[tuple[str, ...]] = ("lamps",)

    lamps: Range = _ONE
    tilt: Range = _NOTHING
    strength: Range = _ONE
    colour: Range = _NOTHING
    shadows: bool | None = None

    def draw(self, rng: np.random.Generator, views: Sequence[str]) -> dict[str, Any]:
        """Number, tilt and its side in degrees, strength, and the factor of every channel."""
        tints = [round(1 - self._between(rng, "colour"), 6) for _ in range(3)]
        return {
            "lamps": self._count(rng, "lamps"),
            "tilt": self._between(rng, "tilt"),
            "side": round(float(rng.uniform(0, 360)), 6),
            "strength": self._between(rng, "strength"),
            "tint": tints,
            "shadows": self.shadows,
            "seed": int(rng.integers(2**31)),
        }


@dataclass(frozen=True)
class AppearanceShift(ShiftPart):
    """Colours of what is not the task's, and shades of what is.

    Attributes:
        table: share of a random colour in the table's.
        background: share of a random colour in the floor's and the sky's.
        robot: share of a random colour in the arm's.
        objects: factor of the brightness of the task's objects, which keep their colour's name.
    """

    limits: ClassVar[Mapping[str, Range]] = {
        "table": (0.0, 1.0),
        "background": (0.0, 1.0),
        "robot": (0.0, 1.0),
        "objects": (0.5, 1.5),
    }
    of_scene: ClassVar[bool] = True

    table: Range = _NOTHING
    background: Range = _NOTHING
    robot: Range = _NOTHING
    objects: Range = _ONE

    def draw(self, rng: np.random.Generator, views: Sequence[str]) -> dict[str, Any]:
        """A share and a colour for each surface, and the factor of the objects' brightness."""
        surfaces = {
            name: {
                "share": self._between(rng, name),
                "colour": [round(float(value), 6) for value in rng.uniform(0, 1, 3)],
            }
            for name in ("table", "background", "robot")
        }
        return {**surfaces, "objects": self._between(rng, "objects")}


@dataclass(frozen=True)
class DistractorShift(ShiftPart):
    """Objects that the task does not know, which nothing can touch.

    Attributes:
        count: how many.
    """

    limits: ClassVar[Mapping[str, Range]] = {"count": (0.0, 8.0)}
    of_scene: ClassVar[bool] = True
    counts: ClassVar[tuple[str, ...]] = ("count",)

    count: Range = (1.0, 3.0)

    def draw(self, rng: np.random.Generator, views: Sequence[str]) -> dict[str, Any]:
        """Their number, and the seed of their shapes, colours and places."""
        return {"count": self._count(rng, "count"), "seed": int(rng.integers(2**31))}


@dataclass(frozen=True)
class StartShift(ShiftPart):
    """The robot's first pose.

    Attributes:
        random: probability of a random pose in the workspace instead of the home pose.
    """

    limits: ClassVar[Mapping[str, Range]] = {}
    of_scene: ClassVar[bool] = True

    random: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.random <= 1:
            raise InvalidValue(f"shift: random of StartShift is {self.random}; a probability is in [0, 1]")

    def draw(self, rng: np.random.Generator, views: Sequence[str]) -> dict[str, Any]:
        """Whether the pose is random; the trial's seed decides which."""
        return {"random": bool(rng.uniform() < self.random)}


@dataclass(frozen=True)
class LayoutShift(ShiftPart):
    """The task's objects outside the box that training draws them from.

    Attributes:
        outside: metres by which the box is grown; the object to be acted on lies outside the training's.
    """

    limits: ClassVar[Mapping[str, Range]] = {"outside": (0.0, 0.2)}
    of_scene: ClassVar[bool] = True

    outside: Range = (0.03, 0.03)

    def draw(self, rng: np.random.Generator, views: Sequence[str]) -> dict[str, Any]:
        """Metres."""
        return {"outside": self._between(rng, "outside")}


@dataclass(frozen=True)
class InstructionShift(ShiftPart):
    """Phrasings that training does not use. It has no settings."""

    limits: ClassVar[Mapping[str, Range]] = {}
    of_scene: ClassVar[bool] = True

    def draw(self, rng: np.random.Generator, views: Sequence[str]) -> dict[str, Any]:
        """Nothing: the trial's seed chooses among the phrasings as ever."""
        return {}


@dataclass(frozen=True)
class ViewShift(ShiftPart):
    """Cameras that are lost.

    Attributes:
        keep: names of the views that the policy gets at all; all if empty.
        lose: how many of them are lost, drawn per trial.
        after: simulated seconds after which they are; 0: they never were there.
    """

    limits: ClassVar[Mapping[str, Range]] = {"after": (0.0, 600.0)}
    of_scene: ClassVar[bool] = False

    keep: tuple[str, ...] = ()
    lose: int = 0
    after: Range = _NOTHING

    def draw(self, rng: np.random.Generator, views: Sequence[str]) -> dict[str, Any]:
        """The order in which views are lost, how many are, and after how many seconds."""
        check_known("views", self.keep, views)
        if self.lose < 0:
            raise InvalidValue(f"shift: lose of ViewShift is {self.lose}; the least is 0")
        order = [str(view) for view in rng.permutation(list(views))]
        return {
            "keep": list(self.keep or views),
            "order": order,
            "lose": self.lose,
            "after": self._between(rng, "after"),
        }


@dataclass(frozen=True)
class SensorShift(ShiftPart):
    """Pictures as a real camera spoils them.

    Attributes:
        noise: standard deviation of Gaussian noise, in levels of 255.
        blur: standard deviation of a Gaussian blur, pixels.
        jpeg: quality of a JPEG that the picture went through; 100 and more: none.
        exposure: stops of light too many (positive) or too few.
        latency: simulated seconds by which the pictures are older than the pose.
    """

    limits: ClassVar[Mapping[str, Range]] = {
        "noise": (0.0, 128.0),
        "blur": (0.0, 16.0),
        "jpeg": (1.0, 101.0),
        "exposure": (-4.0, 4.0),
        "latency": (0.0, 2.0),
    }
    of_scene: ClassVar[bool] = False

    noise: Range = _NOTHING
    blur: Range = _NOTHING
    jpeg: Range = (101.0, 101.0)
    exposure: Range = _NOTHING
    latency: Range = _NOTHING

    def draw(self, rng: np.random.Generator, views: Sequence[str]) -> dict[str, Any]:
        """A value of each, and the noise's seed."""
        return {**{name: self._between(rng, name) for name in self.limits}, "seed": int(rng.integers(2**31))}


@dataclass(frozen=True)
class CalibrationShift(ShiftPart):
    """Errors of the cameras' poses as the policy gets them; the pictures stay where they are.

    Attributes:
        degrees: angle between a camera's given and true orientation, about a random axis.
        millimetres: distance between a camera's given and true centre, in a random direction.
    """

    limits: ClassVar[Mapping[str, Range]] = {"degrees": (0.0, 45.0), "millimetres": (0.0, 500.0)}
    of_scene: ClassVar[bool] = False

    degrees: Range = _NOTHING
    millimetres: Range = _NOTHING

    def draw(self, rng: np.random.Generator, views: Sequence[str]) -> dict[str, Any]:
        """By camera: a rotation vector in degrees and a translation in millimetres, in the camera's axes."""
        return {
            view: {
                "rotation_deg": _along(rng, self._between(rng, "degrees")),
                "translation_mm": _along(rng, self._between(rng, "millimetres")),
            }
            for view in views
        }


def _along(rng: np.random.Generator, length: float) -> list[float]:
    """A vector of that length in a random direction."""
    direction = rng.normal(size=3)
    return [round(float(value), 6) for value in length * direction / np.linalg.norm(direction)]

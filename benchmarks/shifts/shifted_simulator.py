"""A simulator under a shift: its scenes are changed as drawn, its frames are as the policy would get them."""

import hashlib
import json
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ai_wam.episodes import Frame, View
from ai_wam.errors import InvalidValue
from benchmarks.shifts.frames import misplaced, remaining, spoilt
from benchmarks.shifts.shift import Shift
from benchmarks.simulator import Shiftable, Simulator, StepResult, Trial

_DEFINING = ("parts.py", "shift.py", "frames.py", "shifted_simulator.py")


class ShiftedSimulator:
    """A `benchmarks.simulator.Simulator` whose trials are another simulator's, shifted.

    Args:
        simulator: builds the scenes.
        shift: what they differ in.

    Raises:
        ValueError: a part that the simulator cannot build, or a range beyond what it can.
    """

    def __init__(self, simulator: Simulator, shift: Shift) -> None:
        self.simulator, self.shift = simulator, shift
        self.control_hz, self.cameras = simulator.control_hz, simulator.cameras
        _check(simulator, shift)
        self._drawn: dict[str, Any] = {}
        self._past: deque[Frame] = deque(maxlen=1)

    @property
    def settings(self) -> dict[str, Any]:
        """The simulator's own, and the shift."""
        return {**getattr(self.simulator, "settings", {}), "shift": self.shift.describe()}

    @property
    def drawn(self) -> dict[str, Any]:
        """The shift's values in the present trial, by part; empty before the first."""
        return self._drawn

    def tasks(self) -> Mapping[str, int]:
        """The simulator's."""
        return self.simulator.tasks()

    def definition(self, names: Sequence[str]) -> str:
        """Hash of the simulator's own definition, and of the code that draws and builds shifts."""
        own = self.simulator.definition(names) if hasattr(self.simulator, "definition") else ""
        built = self.simulator.shift_definition() if isinstance(self.simulator, Shiftable) else ""
        code = [(Path(__file__).parent / file).read_text(encoding="utf-8") for file in _DEFINING]
        return hashlib.sha256("\0".join([own, built, *code]).encode()).hexdigest()

    def reset(self, trial: Trial) -> tuple[str, ...]:
        """Draw the trial's shift and build its scene; returns its instructions."""
        self._drawn = self.shift.draw(trial, self.cameras)
        of_scene = {name: self._drawn[name] for name, part in self.shift.parts.items() if part.of_scene}
        if of_scene:
            assert isinstance(self.simulator, Shiftable)
            self.simulator.shift_next(of_scene)
        latency = self._drawn["sensor"]["latency"] if "sensor" in self._drawn else 0.0
        self._past = deque(maxlen=1 + round(latency * self.control_hz))
        return self.simulator.reset(trial)

    def scene(self) -> str:
        """The simulator's fingerprint, and one of the drawn values behind it."""
        text = json.dumps(self._drawn, sort_keys=True)
        return f"{self.simulator.scene()}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"

    def observe(self, views: Sequence[str] | None = None) -> Frame:
        """The frame as the policy gets it: some views may be missing, the pictures spoilt or old."""
        now = self.simulator.observe(views)
        seen = self._delayed(now)
        kept = list(seen.views)
        if (lost := self._drawn.get("views")) is not None:
            kept = remaining(lost, kept, now.seconds)
            if not kept:
                raise InvalidValue(
                    f"shift: views keeps {lost['keep']}, and the policy asks for {list(seen.views)}: nothing "
                    "is left; keep at least one view of the policy"
                )
        step = round(now.seconds * self.control_hz)
        return replace(now, views={name: self._seen(name, seen.views[name], step) for name in kept})

    def pose(self) -> Float[np.ndarray, "8"]:
        """The simulator's."""
        return self.simulator.pose()

    def step(self, action: Float[np.ndarray, "8"]) -> StepResult:
        """Follow an action for one control step."""
        result = self.simulator.step(action)
        if self._past and (self._past.maxlen or 1) > 1:
            self._past.append(self.simulator.observe(list(self._past[-1].views)))
        return result

    def demonstrate(self) -> Iterator[Float[np.ndarray, "8"]]:
        """The simulator's expert."""
        return self.simulator.demonstrate()

    def diagnostics(self) -> Mapping[str, float]:
        """The simulator's."""
        return self.simulator.diagnostics()

    def versions(self) -> Mapping[str, str]:
        """The simulator's."""
        return self.simulator.versions()

    def close(self) -> None:
        """Release the simulator."""
        self.simulator.close()

    def __reduce__(self) -> tuple[type, tuple[Simulator, Shift]]:
        return type(self), (self.simulator, self.shift)  # copies and pickles begin before the first reset

    def _delayed(self, now: Frame) -> Frame:
        """The frame whose pictures arrive now: with latency an older one, the first of the trial at least."""
        if not self._past or set(self._past[-1].views) != set(now.views):
            self._past.clear()
            self._past.append(now)
        return now if self._past.maxlen == 1 else self._past[0]

    def _seen(self, name: str, view: View, step: int) -> View:
        if (sensor := self._drawn.get("sensor")) is not None:
            # Noise belongs to an instant: it must not depend on how often the trial's video looks.
            noise = np.random.default_rng([sensor["seed"], step, zlib.crc32(name.encode())])
            view = replace(view, image=spoilt(view.image, sensor, noise))
        if "calibration" in self._drawn:
            view = misplaced(view, self._drawn["calibration"][name])
        return view


def _check(simulator: Simulator, shift: Shift) -> None:
    of_scene = {name: part for name, part in shift.parts.items() if part.of_scene}
    known = simulator.shift_parts if isinstance(simulator, Shiftable) else frozenset()
    if unknown := sorted(set(of_scene) - known):
        able = sorted(known | {"views", "sensor", "calibration"})
        raise InvalidValue(
            f"shift: {type(simulator).__name__} cannot build {unknown}; the parts it can take are {able}"
        )
    shift.draw(Trial("any", 0, 0), simulator.cameras)  # raises for names of views that there are not
    if isinstance(simulator, Shiftable):
        simulator.check_shift(of_scene)

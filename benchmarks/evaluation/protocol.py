"""The rules of an evaluation: two results may be compared where their `protocol_hash` agrees."""

import dataclasses
import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, Literal

from ai_wam.errors import InvalidValue
from ai_wam.types import Clip
from ai_wam.utils.class_paths import class_path
from benchmarks.shifts import Shift, ShiftedSimulator
from benchmarks.simulator import Simulator, Trial

_RULES = 2  # raised when this package draws, executes or evaluates trials in another way than before


@dataclass(frozen=True)
class EvaluationProtocol:
    """How trials are drawn, executed and stopped.

    Attributes:
        execution: "one_shot" executes one chunk open loop and holds its last pose to the end of the budget;
            "receding" executes the first `execute_frames` actions of a chunk, observes and plans again.
        execute_frames: actions executed of each chunk (receding only).
        max_seconds: budget of a trial, simulated seconds; when it is spent the trial stops as "timeout".
        trials_per_task: trials of every task, spread evenly over its variations.
        tasks: names of the tasks; all of the simulator's if empty.
        split: which scenes; "test" scenes share no seed with "train" demonstrations.
        max_invalid_frames: an action marked invalid is not executed, the last valid pose is held in its
            place; a trial that meets more of them than this stops as "invalid".
        max_unreached_streak: more control steps in a row than this whose pose inverse kinematics cannot
            follow stop the trial as "unreachable".
        min_ceiling: a task of which the ceiling solves a smaller share measures simulator, controller and
            codec more than any model: it is listed apart and is in no mean.
        prefix: frames of the last chunk's actions that are already committed when the next chunk is planned
            (receding only), as far as that chunk reaches: they are carried out while the policy computes,
            the policy is conditioned on them, and its chunk takes over behind them. 0: the simulation waits
            for the policy.
        latency: simulated seconds that the policy takes to answer (receding only): the last chunk is carried
            out meanwhile, its last pose held where it ends, and a new chunk takes over no earlier; the world
            waits for the first chunk.
        max_position_std: metres; actions whose decoded standard deviation exceeds it are not executed, the
            last valid pose is held in their place until a confident action or the next chunk comes. They do
            not count as invalid. None: no limit.
        low_confidence: what happens to actions above `max_position_std`. "hold": the last valid pose is held;
            "replan" (receding only): the chunk ends where the first of them would begin, and a new one is
            planned from there. The first action of a chunk that is not committed yet takes its time in any
            case, held if its confidence is low, so that simulated time passes with every chunk.
    """

    execution: Literal["one_shot", "receding"] = "one_shot"
    execute_frames: int = 4
    max_seconds: float = 8.0
    trials_per_task: int = 50
    tasks: tuple[str, ...] = ()
    split: str = "test"
    max_invalid_frames: int = 8
    max_unreached_streak: int = 20
    min_ceiling: float = 0.5
    prefix: int = 0
    latency: float = 0.0
    max_position_std: float | None = None
    low_confidence: Literal["hold", "replan"] = "hold"
    shift: Shift | None = None

    def __post_init__(self) -> None:
        if self.execution not in ("one_shot", "receding"):
            raise InvalidValue(f"protocol: execution is {self.execution!r}; choose 'one_shot' or 'receding'")
        for name, low in (("execute_frames", 1), ("trials_per_task", 1), ("max_invalid_frames", 0)):
            if getattr(self, name) < low:
                raise InvalidValue(f"protocol: {name} is {getattr(self, name)}, the least is {low}")
        if not 0 < self.max_seconds < math.inf or self.max_unreached_streak < 0:
            raise InvalidValue(
                f"protocol: max_seconds ({self.max_seconds}) must be positive and max_unreached_streak "
                f"({self.max_unreached_streak}) at least 0"
            )
        if not 0 <= self.min_ceiling <= 1:
            raise InvalidValue(f"protocol: min_ceiling is {self.min_ceiling}; a rate lies in [0, 1]")
        if self.prefix < 0 or (self.prefix and self.execution != "receding"):
            raise InvalidValue(
                f"protocol: prefix is {self.prefix} and execution {self.execution!r}; committed actions are "
                "at least 0 and need execution: receding"
            )
        if not 0 <= self.latency < math.inf or (self.latency and self.execution != "receding"):
            raise InvalidValue(
                f"protocol: latency is {self.latency} and execution {self.execution!r}; it is at least 0 s, "
                "and needs execution: receding"
            )
        if self.max_position_std is not None and not self.max_position_std > 0:
            raise InvalidValue(
                f"protocol: max_position_std is {self.max_position_std}; it must be positive (metres), or "
                "null for no limit"
            )
        self._check_low_confidence()

    def _check_low_confidence(self) -> None:
        if self.low_confidence not in ("hold", "replan"):
            raise InvalidValue(
                f"protocol: low_confidence is {self.low_confidence!r}; choose 'hold' or 'replan'"
            )
        if self.low_confidence == "replan" and (
            self.execution != "receding" or self.max_position_std is None
        ):
            raise InvalidValue(
                f"protocol: low_confidence is 'replan' with execution {self.execution!r} and "
                f"max_position_std {self.max_position_std}; replanning needs execution: receding and a "
                "max_position_std"
            )

    def task_names(self, simulator: Simulator) -> tuple[str, ...]:
        """The tasks to run, in order.

        Raises:
            ValueError: a task the simulator does not have.
        """
        known = simulator.tasks()
        if unknown := [name for name in self.tasks if name not in known]:
            raise InvalidValue(
                f"protocol: unknown tasks {unknown}; {type(simulator).__name__} has {sorted(known)}"
            )
        return self.tasks or tuple(known)

    def shifted(self, simulator: Simulator) -> Simulator:
        """The simulator that builds the protocol's scenes.

        Raises:
            ValueError: it cannot build them.
        """
        return simulator if self.shift is None else ShiftedSimulator(simulator, self.shift)

    def trials(self, simulator: Simulator) -> list[Trial]:
        """Every trial, task by task; number i of a task is scene i // n of variation i % n."""
        return [
            Trial(task, i % simulator.tasks()[task], i // simulator.tasks()[task], self.split)
            for task in self.task_names(simulator)
            for i in range(self.trials_per_task)
        ]

    def describe(self, simulator: Simulator, clip: Clip) -> dict[str, Any]:
        """Everything that decides what a trial is, as JSON: these rules, the simulator, the clip's geometry.

        Tasks are listed with their numbers of variations, which decide what scenes are drawn. The clip's
        number of frames is included for one-shot execution only, where all of a chunk is executed; with a
        receding horizon the length of a chunk is a property of the model. A simulator whose scenes are
        defined in this repository adds `definition(tasks)`, a hash of them.
        """
        known = simulator.tasks()
        tasks = {name: known[name] for name in self.task_names(simulator)}
        rules = dataclasses.asdict(self) | {"rules": _RULES, "tasks": tasks}
        rules["shift"] = None if self.shift is None else self.shift.describe()
        if self.execution == "one_shot":
            del rules["execute_frames"]
        for name, off in (
            ("prefix", 0),
            ("latency", 0.0),
            ("max_position_std", None),
            ("low_confidence", "hold"),
            ("shift", None),
        ):
            if rules[name] == off:
                del rules[name]
        seen = ("views", "size", "stride", "control_hz") + ("frames",) * (self.execution == "one_shot")
        view = {name: getattr(clip, name) for name in seen}
        world = configuration(simulator.simulator if isinstance(simulator, ShiftedSimulator) else simulator)
        if hasattr(simulator, "definition"):
            world["definition"] = simulator.definition(list(tasks))
        described: dict[str, Any] = json.loads(canonical(rules | {"clip": view, "simulator": world}))
        return described

    def hash(self, simulator: Simulator, clip: Clip) -> str:
        """`digest` of `describe`."""
        return digest(self.describe(simulator, clip))


def digest(described: Mapping[str, Any]) -> str:
    """SHA-256 of a described protocol (`EvaluationProtocol.describe`) in canonical JSON."""
    return hashlib.sha256(canonical(described).encode()).hexdigest()


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def configuration(component: object) -> dict[str, Any]:
    """Class path and constructor arguments of an object, as JSON values.

    Arguments are read back from attributes of the same name (or with a leading underscore). A class may name
    arguments that cannot change a result in `incidental`; they are left out.

    Raises:
        ValueError: an argument that was not kept, or that is no JSON value.
    """
    cls = type(component)
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if name in getattr(cls, "incidental", ()):
            continue
        kept = [key for key in (name, f"_{name}") if hasattr(component, key)]
        if not kept or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise InvalidValue(
                f"{cls.__qualname__} does not keep its constructor argument {name!r}, so a result could not "
                f"record how it was configured; store it as self.{name}"
            )
        arguments[name] = _json_value(getattr(component, kept[0]), f"{cls.__qualname__}.{name}")
    return {"class_path": class_path(component), "init_args": arguments}


def _json_value(value: Any, name: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PathLike):
        return fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _json_value(getattr(value, field.name), name) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): _json_value(item, name) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item, name) for item in value]
    raise InvalidValue(
        f"{name} is a {type(value).__name__}; results record numbers, texts, lists and dataclasses only"
    )

"""What a person can cause is a `UserError` everywhere, so that the command line knows it from a fault."""

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from ai_wam import errors
from ai_wam.errors import InvalidValue, UserError
from backbones.weights.checkpoint_parts import MissingPart

ROOT = Path(__file__).parents[2]
BUILT_IN = {
    "Exception", "ValueError", "TypeError", "RuntimeError", "OSError", "IOError", "IndexError", "LookupError",
    "FileNotFoundError", "FileExistsError", "PermissionError", "ImportError", "ModuleNotFoundError",
    "SystemExit",
}  # fmt: skip
FAULTS = {  # mistakes in a program that uses these modules, which a traceback serves better
    "ai_wam/__init__.py": "ImportError",  # raised while the package is imported, before there is a command
    "ai_wam/cli/backbone_override.py": "TypeError",
    "benchmarks/evaluation/success_against_std.py": "SystemExit",  # a script of its own
    "benchmarks/simulators/rlbench/simulator.py": "RuntimeError",
    "benchmarks/speed/codec.py": "SystemExit",  # a script of its own
    "benchmarks/simulators/mujoco_graphics.py": "RuntimeError",
    "benchmarks/simulators/metaworld/simulator.py": "RuntimeError",
    "benchmarks/simulators/tabletop/simulator.py": "RuntimeError",
    "benchmarks/trial_datamodule.py": "RuntimeError",
    "benchmarks/transfer/__main__.py": "SystemExit",  # a script of its own
    "datamodules/reading/safe_pickle.py": "Exception",  # never leaves its module
    "datamodules/shards/parallel_writing.py": "RuntimeError",
    "datamodules/shard_datamodule.py": "RuntimeError",
    "datamodules/shards/worker_errors.py": "Exception",  # a traceback, which is the cause of another error
}


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for package in ("ai_wam", "backbones", "tasks", "datamodules", "benchmarks"):
        for file in sorted((ROOT / package).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            if "environment_server" not in name:  # runs in another interpreter, without this project
                yield name, ast.parse(file.read_text(encoding="utf-8"))


def _raised(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of every built-in exception that is raised, extended, or stands for `sys.exit`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            made = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            names = [made.id] if isinstance(made, ast.Name) else []
        elif isinstance(node, ast.ClassDef):
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            names = bases[:1] if bases and bases[0] in BUILT_IN - {"SystemExit"} else []
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "exit"):
            names = ["SystemExit"]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name in BUILT_IN)


def test_what_a_person_can_cause_is_no_bare_built_in_error():
    found = {(name, what): line for name, tree in _modules() for line, what in _raised(tree)}
    allowed = set(FAULTS.items()) | {("ai_wam/errors.py", "Exception")}
    assert {place: line for place, line in found.items() if place not in allowed} == {}
    assert allowed <= found.keys()  # what is no longer raised is taken off the list


KINDS = [each for each in vars(errors).values() if isinstance(each, type) and each is not UserError]


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_built_in_errors_too_and_travel_between_processes(kind: type[UserError]):
    ours, built_in = kind.__bases__
    assert ours is UserError
    assert built_in.__name__ in BUILT_IN
    again = pickle.loads(pickle.dumps(kind("what, its value and the way out")))
    assert type(again) is kind
    assert str(again) == "what, its value and the way out"


def test_missing_parts_travel_too():
    error = MissingPart({"place": {"vae": "is not there"}})
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert again.places == error.places
    assert isinstance(again, FileNotFoundError)
    assert not isinstance(again, InvalidValue)

"""The command `ai-wam`: Lightning's four commands, and one typed function per file for the others."""

import sys
from collections.abc import Sequence
from importlib import import_module
from shutil import get_terminal_size
from textwrap import fill
from types import ModuleType

from ai_wam import __version__
from ai_wam.cli.errors import one_sentence
from ai_wam.cli.signals import interruptible, raise_swallowed
from ai_wam.errors import InvalidValue
from ai_wam.utils.kept_memory import keep_freed_memory

LIGHTNING = {
    "fit": "train a model",
    "validate": "errors of a checkpoint on recorded episodes",
    "test": "closed-loop trials of a checkpoint on a benchmark, or its metrics on recorded clips",
    "predict": "run a checkpoint on your own input",
}
OWN = {
    "demo": "a policy that comes with the package acts in unseen scenes, within a minute",
    "quickstart": "all steps on this machine: collect, fit, test, report",
    "collect": "write the demonstrations of a simulator's expert into shards",
    "convert": "write recorded files of another layout into shards",
    "cache": "latents of a training's frozen encoders, written beside the shards",
    "inspect": "list the content of a folder of shards and check it for training",
    "view": "recordings, trials and predictions in space and time, in the Rerun viewer",
    "export-checkpoint": "a trained checkpoint's backbone as a folder to load, to share or to push",
    "convert-checkpoint": "the released Action Images checkpoint into a folder for a backbone, and back",
    "label": "label recordings without actions by a model, into shards",
    "export": "write shards in the layout of another project",
    "compare": "compare two results of one protocol, or two sweeps, paired trial by trial",
    "sweep": "closed-loop trials of a checkpoint under a list of shifts: cameras, light, sensors ...",
    "completion": "a script by which bash or zsh completes commands and options",
    "serve": "a checkpoint's policy as a service that robots and `ai-wam test` ask for actions",
    "env": "versions, GPU and graphics of this machine, for a report of an issue",
    "rlbench-doctor": "check step by step what RLBench needs on this machine",
}
MODULES = {
    "convert": "collect",  # one function serves both: a source is a source
    "rlbench-doctor": "rlbench_doctor",
}
AROUND = ("cache", "sweep")  # take the words of a `fit`, of a `test`
POSITIONAL = ("compare", "completion", "inspect", "view")  # by order; elsewhere it breaks nested YAML files
_SHARDS = "finished shards are kept, and the same command resumes after them"
_KEPT = {  # by an interrupted command
    "demo": "finished trials are kept in the folder of --out, and the same command resumes after them",
    "quickstart": "the same command resumes with the step that was not finished",
    "collect": _SHARDS,
    "convert": _SHARDS,
    "cache": _SHARDS,
    "label": _SHARDS,
    "test": "finished trials are kept in the folder of --data.out, and the same command resumes after them",
    "sweep": "finished trials are kept in the folder of --out, and the same command resumes after them",
    "export": "nothing is kept",
    "view": "nothing is kept",
    "export-checkpoint": "nothing is kept",
    "convert-checkpoint": "nothing is kept",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; `arguments` stand for the process's own."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return
    if words[0] in ("-V", "--version"):
        print(_versions())
        return
    with interruptible(), one_sentence(words[0], _KEPT.get(words[0], "")):
        run_command(words[0], words[1:])


def run_command(command: str, rest: Sequence[str]) -> None:
    """Run one command in this process; errors are raised."""
    if command in (*LIGHTNING, *AROUND, "serve"):
        keep_freed_memory()
    if command == "test" and any(word.partition("=")[0] == "--ray" for word in rest):
        _imported("ray_trials").main([command, *rest])
    elif command in AROUND:
        _imported(command).main(rest)
    elif command in LIGHTNING:
        _imported("training").run([command, *rest])
    elif command in OWN:
        from jsonargparse import auto_cli

        from ai_wam.cli.parsing import CommandParser
        from ai_wam.cli.shipped_configs import resolved

        name = MODULES.get(command, command).replace("-", "_")
        module = _imported(name)
        positional, prog = command in POSITIONAL, f"ai-wam {command}"
        auto_cli(
            getattr(module, name),
            args=resolved(rest),
            as_positional=positional,
            parser_class=CommandParser,
            prog=prog,
        )
    else:
        raise InvalidValue(f"unknown command {command!r}\n\n{_usage()}")


def _imported(name: str) -> ModuleType:
    """A module of this package; the many that it imports take seconds, in which Ctrl-C may come."""
    module = import_module(f"ai_wam.cli.{name}")
    raise_swallowed()
    return module


def _versions() -> str:
    """This package's version; in a second line the commit and the packages that results depend on."""
    from benchmarks.evaluation.provenance import versions

    found = versions()
    found.pop("ai-wam", None)
    return f"ai-wam {__version__}\n{', '.join(f'{name} {value}' for name, value in found.items())}"


def _usage() -> str:
    """The list of commands, as wide as the terminal."""
    width = max(60, get_terminal_size().columns - 1)
    lines = [
        fill(f"{name:<20}{text}", width, initial_indent="  ", subsequent_indent=22 * " ")
        for name, text in {**OWN, **LIGHTNING}.items()
    ]
    head = "usage: ai-wam COMMAND [options]       (ai-wam COMMAND --help lists them; ai-wam --version)"
    return "\n".join([fill(head, width, subsequent_indent=22 * " "), "", *lines])

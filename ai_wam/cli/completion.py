"""`ai-wam completion`: a script by which the shell completes commands, options and shipped configurations.

The script is static, since a shell that asked Python at every key would wait seconds for the imports of a
command's options. It is ours, since jsonargparse's (through shtab) follows every class that a setting can be,
and did not end in nine minutes for `ai-wam fit`.
"""

import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jsonargparse import auto_cli, capture_parser

from ai_wam import cli
from ai_wam.cli.parsing import CommandParser

_SCRIPT = """\
# Completion of ai-wam; made by `ai-wam completion {shell}`.
{head}_ai_wam() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} words=
    if [[ $COMP_CWORD == 1 ]]; then
        words="{commands}"
    elif [[ $current == configs/* ]]; then
        words="{configs}"
    elif [[ $current == -* ]]; then
        case ${{COMP_WORDS[1]}} in
{options}
        esac
    else
        case ${{COMP_WORDS[1]}}:$previous in
{choices}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -o bashdefault -F _ai_wam ai-wam
"""
_CHOICES = re.compile(r"\{([\w,-]+)\}")  # as help texts show the values of an option
_HEADS = {
    "bash": "",
    # `complete` of bashcompinit calls compdef, which exists once compinit ran, as most ~/.zshrc run it.
    "zsh": "autoload -U compinit bashcompinit\n(( $+functions[compdef] )) || compinit\nbashcompinit\n",
}


class _Options(NamedTuple):
    """Names of a command's options, and the values of those that have few."""

    names: list[str]
    choices: dict[str, list[str]]


def completion(shell: Literal["bash", "zsh"]) -> None:
    """Print a script that completes commands, options and shipped configurations.

    Write it once, and again after an update of ai-wam: for bash into
    ~/.local/share/bash-completion/completions/ai-wam, for zsh into a file that ~/.zshrc sources.

    Args:
        shell: the shell it is for.
    """
    print(script(shell), end="")


def script(shell: Literal["bash", "zsh"]) -> str:
    """The script for a shell."""
    found = {command: _options(parser) for command, parser in _parsers().items()}
    lines = [f'            {command}) words="{" ".join(each.names)}" ;;' for command, each in found.items()]
    values = [
        f'            {command}:{name}) words="{" ".join(choices)}" ;;'
        for command, each in found.items()
        for name, choices in each.choices.items()
    ]
    root = Path(str(files("configs")))
    configs = sorted(f"configs/{file.relative_to(root)}" for file in root.rglob("*.yaml"))
    return _SCRIPT.format(
        shell=shell,
        head=_HEADS[shell],
        commands=" ".join(found),
        configs=" ".join(configs),
        options="\n".join(lines),
        choices="\n".join(values),
    )


def _parsers() -> Mapping[str, Any]:
    """The parser of every command; `cache` and `sweep` take the words of `fit` and `test`, and own ones."""
    parsers = {
        command: capture_parser(
            auto_cli,
            _function(command),
            args=[],
            as_positional=command in cli.POSITIONAL,
            parser_class=CommandParser,
        )
        for command in cli.OWN
        if command not in cli.AROUND
    }
    for command in (*cli.LIGHTNING, *cli.AROUND):
        parsers[command] = _lightning_parser(command)
    return parsers


def _function(command: str) -> Any:
    name = cli.MODULES.get(command, command).replace("-", "_")
    return getattr(import_module(f"ai_wam.cli.{name}"), name)


def _lightning_parser(command: str) -> Any:
    """The options of one of Lightning's commands, by the settings that all of them share."""
    from ai_wam.cli.training import parser_of_settings

    parser = parser_of_settings()
    parser.add_argument("--ckpt_path")
    if command in cli.AROUND:
        import_module(f"ai_wam.cli.{command}").add_options(parser)
    if command in ("test", "sweep"):
        parser.add_argument("--ray")
        parser.add_argument("--trial")
    return parser


def _options(parser: Any) -> _Options:
    known = {name: each for name, each in _named(parser._actions) if name.startswith("--")}
    known.pop("--print_shtab", None)  # an old option of the parser, which it refuses
    shown = {name: _CHOICES.fullmatch(str(action.metavar)) for name, action in known.items()}
    choices = {name: found[1].split(",") for name, found in shown.items() if found is not None}
    choices |= {name: [*action.choices] for name, action in known.items() if action.choices}
    return _Options(sorted(known), choices)


def _named(actions: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    return ((name, action) for action in actions for name in action.option_strings)

"""Parsers of command lines and YAML files whose errors are one sentence."""

import argparse
import os
import re
from typing import Any, NoReturn

import jsonargparse
import yaml

from ai_wam.cli.errors import UsageError, refusal
from ai_wam.cli.renamed_settings import hint
from ai_wam.errors import InvalidValue
from ai_wam.files.json_yaml import check_yaml

_NOISE = re.compile(  # lines in which the parser shows what it tried, not what is wrong
    r"(- )?Does not validate against any of the Union subtypes|Subtypes: |Errors:"
    r"|- Expected a <class 'NoneType'>|Given value type: |Given value: "
    r"|- Expected a path but (?!\S+\.(yaml|yml|json) )"
)
_EXPECTED = re.compile(r"Expected an? (?:<class '([\w.]+)'>)\. Got value: (.*)")
_LONGEST = 1500  # characters; what is left out is the value that was given


def short(message: str) -> str:
    """The parser's explanation without the dump around it, in one line."""
    lines = [line.strip() for line in message.splitlines()]
    kept = [line.removeprefix("- ") for line in lines if line and not _NOISE.match(line)]
    text = _EXPECTED.sub(r"expected \1, got \2", " ".join(kept) or message)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


class InOneSentence:
    """Mixin of all commands' parsers: errors are one sentence; comes before a parser among the bases."""

    exit_on_error: bool

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse without the list of all options that argparse prints."""
        if not self.exit_on_error:  # the parser itself tries what a value may be
            super().error(message, ex)  # type: ignore[misc]  # of the parser that comes after this class
        raise UsageError((refusal(ex) or short(message)) + hint(message)) from ex

    def parse_path(self, path: str | os.PathLike[str], *more: Any, **options: Any) -> Any:
        """Read a YAML file; errors name it."""
        try:
            return super().parse_path(path, *more, **options)  # type: ignore[misc]  # see above
        except UnicodeDecodeError as error:
            said = f"{path} is no text in UTF-8 ({error}); save it as UTF-8, or name another file"
            raise UsageError(said) from error
        except (UsageError, InvalidValue) as error:
            raise UsageError(f"{path}: {error}") from error


class CommandParser(InOneSentence, jsonargparse.ArgumentParser):
    """Parser of a command that is one function."""


class WordParser(argparse.ArgumentParser):
    """Parser of options that are taken out of a command's words."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as a `UsageError`."""
        raise UsageError(message)


_load = jsonargparse.get_loader("yaml")


def _load_bounded(text: str) -> Any:
    check_yaml(text)
    return _load(text)


jsonargparse.set_loader("yaml", _load_bounded, (yaml.YAMLError,))

"""JSON and YAML files of people: read as what is expected, or refused with the file's name."""

import json
from pathlib import Path
from typing import Any

import yaml

from ai_wam.errors import InvalidValue
from ai_wam.files import AnyPath

_MOST = 100_000  # values of one YAML text, those behind aliases counted each time; ours have a few hundred
_DEEPEST = 100  # nested levels; ours have at most a dozen
_SHORT = 100  # characters of a text that cannot be too deep

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_json(path: AnyPath) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: unreadable, or no object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidValue(f"{path} cannot be read as JSON: {error}") from error
    except RecursionError as error:
        raise InvalidValue(f"{path} cannot be read as JSON: it is nested too deeply") from error
    if not isinstance(data, dict):
        raise InvalidValue(f"{path} holds a {type(data).__name__}, expected a JSON object")
    return data


def read_yaml(path: Path) -> Any:
    """Content of a YAML file.

    Raises:
        ValueError: unreadable, or too much.
    """
    try:
        text = path.read_text(encoding="utf-8")
        check_yaml(text)
        return yaml.load(text, Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidValue(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error


def check_yaml(text: str) -> None:
    """Refuse a text that would grow out of bounds when read: what aliases stand for is counted, not copied.

    Raises:
        ValueError: too many values, too many levels, or an alias to what it is a part of.
    """
    if "*" not in text and len(text) < _SHORT:
        return
    sizes, levels = dict[str, int](), list[tuple[str | None, int]]()  # behind anchors; of what is open
    for event in yaml.parse(text, Loader=_Loader):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            levels.append((anchor, 1))
            if len(levels) > _DEEPEST:
                raise InvalidValue(f"this YAML is nested more than {_DEEPEST} levels deep")
            continue
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == name for name, _ in levels):
                raise InvalidValue(f"the YAML alias *{anchor} is a part of what it stands for")
            size = sizes.get(str(anchor), 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = levels.pop()
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        if levels:
            levels[-1] = (levels[-1][0], levels[-1][1] + size)
            if levels[-1][1] > _MOST:
                raise InvalidValue(f"this YAML's aliases stand for more than {_MOST:,} values; write it out")

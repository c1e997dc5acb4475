"""Text, JSON and YAML files written by people: checked while read, errors name the file."""

import codecs
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath

_MOST = 100_000  # values of one YAML text, those behind aliases counted each time; ours have a few hundred
_DEEPEST = 100  # nested levels; ours have at most a dozen
_SHORT = 100  # characters of a text that cannot be too deep
_LARGEST = 2**63  # integers of JSON beyond it fit no array
_DIGITS = 20  # shown of an integer that is too large
_WIDE = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}  # first bytes of other encodings

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_text(path: AnyPath) -> str:
    """A text file in UTF-8; a byte-order mark is no part of the text.

    Raises:
        ValueError: unreadable, or in another encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidValue(f"{path} cannot be read: {error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        other = _WIDE.get(data[:2])
        what = f"is {other}" if other else f"is not UTF-8 (byte {error.start} is 0x{data[error.start]:02x})"
        raise InvalidValue(f"{path} {what}; save it as UTF-8") from error


def read_json(path: AnyPath) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: unreadable, no object, or one that has a key twice.
    """
    data = parse_json(read_text(path), str(path))
    if not isinstance(data, dict):
        raise InvalidValue(f"{path} holds a {type(data).__name__}, expected a JSON object")
    return data


def parse_json(text: str, at: str) -> Any:
    """The value of a JSON text.

    Args:
        text: what was read.
        at: where it was read, for the error.

    Raises:
        ValueError: no JSON, nested too deeply, an object with a key twice, an integer of 64 bits or more, or
            half of a character.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_int=_integer)
        if "\\u" in text:
            check_characters(value)
        return value
    except ValueError as error:
        raise InvalidValue(f"{at} cannot be read as JSON: {error}") from error
    except RecursionError as error:
        raise InvalidValue(f"{at} cannot be read as JSON: it is nested too deeply") from error


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InvalidValue(f"the key {key!r} stands twice in one object; which one counts is unknown")
        found[key] = value
    return found


def check_characters(value: Any) -> None:
    """Refuse lone surrogates such as the escape U+D800: they cannot be encoded in UTF-8.

    Args:
        value: of JSON.

    Raises:
        ValueError: naming it.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise InvalidValue(f"{half} is half of a character; write the text anew, as UTF-8") from error


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS or not -_LARGEST <= int(digits) < _LARGEST:
        raise InvalidValue(f"the integer {digits[:_DIGITS]}... has more than 63 bits")
    return int(digits)


def read_yaml(path: Path) -> Any:
    """Content of a YAML file.

    Raises:
        ValueError: unreadable, or too much.
    """
    text = read_text(path)
    try:
        check_yaml(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InvalidValue(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    except InvalidValue as error:  # of the check, which does not know the file
        raise InvalidValue(f"{path}: {error}") from error


def check_yaml(text: str) -> None:
    """Refuse a text that would expand beyond bounds: the nodes behind aliases are counted, not copied.

    Raises:
        ValueError: too many values, too many levels, an alias to what it is a part of, or a key that stands
            twice in one mapping.
    """
    if ":" in text:
        _check_keys(text)
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


def _check_keys(text: str) -> None:
    """Refuse equal keys, of which the parser would silently take the last."""
    open_keys: list[set[str] | None] = []  # of each open collection; None of a sequence
    is_key: list[bool] = []
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionEndEvent):
            open_keys.pop()
            is_key.pop()
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        keys = open_keys[-1] if open_keys else None
        if keys is not None:
            if is_key[-1] and isinstance(event, yaml.ScalarEvent):
                if event.value in keys:
                    line = event.start_mark.line + 1
                    raise InvalidValue(
                        f"line {line}: the key {event.value!r} stands twice; which one counts is unknown"
                    )
                keys.add(event.value)
            is_key[-1] = not is_key[-1]
        if isinstance(event, yaml.CollectionStartEvent):
            open_keys.append(set() if isinstance(event, yaml.MappingStartEvent) else None)
            is_key.append(True)
            if len(open_keys) > _DEEPEST:
                raise InvalidValue(f"this YAML is nested more than {_DEEPEST} levels deep")

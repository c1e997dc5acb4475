"""Parsed settings as plain values."""

from typing import Any

from jsonargparse import Namespace


def bare(value: Any) -> Any:
    """Namespaces and tuples as YAML would write them, without the parser's notes of where a part was read."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {key: bare(part) for key, part in value.items() if not key.startswith("__")}
    return [bare(part) for part in value] if isinstance(value, list | tuple) else value

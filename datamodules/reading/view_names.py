"""Selects and renames the cameras of an episode: the option `views` of every source.

A mixture of data sets trains on one set of names, so a source can rename its layout's cameras to ours.
"""

import re
from collections.abc import Mapping
from typing import TypeAlias

from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath

NAME = re.compile(r"[A-Za-z0-9_-]+")  # of a view or an episode: part of a file's name in shards
Views: TypeAlias = list[str] | dict[str, str] | None


def chosen_views(views: Views, there: Mapping[str, str], at: str | AnyPath) -> dict[str, str]:
    """Our name by the layout's name, of the cameras that are taken, in order.

    Args:
        views: names of the layout, kept as they are called by default; or with a name of ours for each, such
            as {images0: front}. All that are there if left out.
        there: the episode's cameras, each with its default name.
        at: its place, for the error.

    Raises:
        ValueError: a camera that is not there or named twice, none at all, two of one name, or a name that
            no view can have.
    """
    if views is None or isinstance(views, Mapping):
        chosen = dict(there if views is None else views)
    else:
        chosen = {name: there.get(name, name) for name in views}
    if views is not None and len(chosen) < len(views):
        raise InvalidValue(f"{at}: `views` is {views}, which names a view twice; name each once")
    if not chosen or not set(chosen) <= set(there):
        raise InvalidValue(
            f"{at} has the views {list(there)}, `views` asks for {list(chosen)}; change it, or copy the "
            "recording again"
        )
    if len(set(chosen.values())) < len(chosen):
        raise InvalidValue(f"{at}: views are called {chosen}; give each a name of its own")
    if bad := [name for name, ours in chosen.items() if not NAME.fullmatch(ours)]:
        better = re.sub(r"[^A-Za-z0-9_-]+", "_", chosen[bad[0]]).strip("_") or "front"
        raise InvalidValue(
            f"{at}: view {chosen[bad[0]]!r} must be made of letters, digits, '-' and '_' only; give it such "
            f"a name by views, as in {{{bad[0]!r}: {better}}}"
        )
    return chosen


def unrenamed(names: list[str]) -> dict[str, str]:
    """Each camera with its own name as the default name."""
    return {name: name for name in names}

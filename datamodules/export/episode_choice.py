"""Selects episodes of a set by number, range of numbers, or key."""

import re
from collections.abc import Sequence
from typing import TypeAlias

from ai_wam.errors import InvalidValue

Episodes: TypeAlias = list[int | str] | int | str | None
_RANGE = re.compile(r"(?P<first>[0-9]{1,18})(-(?P<last>[0-9]{1,18}))?")


def chosen_episodes(wanted: Episodes, keys: Sequence[str], at: str) -> list[int]:
    """Numbers of the episodes, in the order in which they are asked for.

    Args:
        wanted: numbers from 0 on, ranges such as 3-7 (both ends included), keys, or several of these, as a
            list or divided by commas; what is a key is never read as a number. All if None.
        keys: of all episodes.
        at: their folder, for the error.

    Raises:
        ValueError: an episode that is not there, one that is asked for twice, or none at all.
    """
    if wanted is None:
        return list(range(len(keys)))
    words = wanted.split(",") if isinstance(wanted, str) else wanted if isinstance(wanted, list) else [wanted]
    places = {key: number for number, key in enumerate(keys)}
    numbers = [number for word in words for number in _numbers(str(word).strip(), places, at)]
    if not numbers or len(set(numbers)) < len(numbers):
        raise InvalidValue(
            f"{at}: `episodes` is {wanted!r}, which is "
            f"{'one episode twice' if numbers else 'none'}; name each episode once"
        )
    return numbers


def _numbers(word: str, places: dict[str, int], at: str) -> range:
    if word in places:
        return range(places[word], places[word] + 1)
    found = _RANGE.fullmatch(word)
    if found is None:
        some = ", ".join(list(places)[:3])
        raise InvalidValue(f"{at} has no episode {word!r:.100}; it has the keys {some} ... or use numbers")
    first, last = int(found["first"]), int(found["last"] or found["first"])
    if not first <= last < len(places):
        raise InvalidValue(f"{at} has the episodes 0 to {len(places) - 1}, `episodes` asks for {word}")
    return range(first, last + 1)

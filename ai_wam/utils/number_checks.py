"""Checks of numbers in settings: finite and in range."""

import math

from ai_wam.errors import InvalidValue


def check_numbers(
    where: str,
    *,
    at_least: int | float = -math.inf,
    at_most: int | float = math.inf,
    above: int | float = -math.inf,
    below: int | float = math.inf,
    **values: int | float | None,
) -> None:
    """Refuse NaN, infinity and what lies outside a range; None stands for a number that was left out.

    Args:
        where: whose numbers they are.
        at_least: smallest allowed value.
        at_most: largest allowed value.
        above: number that every value must exceed.
        below: number that every value must stay under.
        values: by name.

    Raises:
        ValueError: the first value that is refused, with its name and the range.
    """
    for name, value in values.items():
        if value is None or (math.isfinite(value) and at_least <= value <= at_most and above < value < below):
            continue
        bounds = {"at least": at_least, "at most": at_most, "above": above, "below": below}
        asked = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))
        raise InvalidValue(f"{where}: {name} must be finite{asked and f' and {asked}'}, got {value}")

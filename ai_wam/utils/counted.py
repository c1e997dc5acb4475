"""Numbers with the things they count."""


def counted(number: int, thing: str) -> str:
    """As in "1 episode" and "12 episodes": for an English noun whose plural ends in s."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"

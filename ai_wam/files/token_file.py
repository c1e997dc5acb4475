"""The secret word of a server, in a file: on a command line other users of the machine could read it."""

from pathlib import Path

from ai_wam.errors import InvalidValue

_LONGEST = 1024  # characters


def read_token(file: str) -> str:
    """The token of a file.

    Raises:
        ValueError: no file, an empty one, or one of more than a word in ASCII.
    """
    if not Path(file).is_file():
        raise InvalidValue(f"token_file {file!r} is no file; make one with `openssl rand -hex 32 > {file}`")
    token = Path(file).read_bytes()[: 2 * _LONGEST].strip()
    if not token or not token.isascii() or len(token.split()) > 1 or len(token) > _LONGEST:
        raise InvalidValue(
            f"token_file {file!r} must hold one word in ASCII; make one with `openssl rand -hex 32`"
        )
    return token.decode()

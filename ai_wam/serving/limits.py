"""What a server takes: of one message, one session, and all of them together."""

import time
from dataclasses import dataclass

from ai_wam.errors import InvalidValue
from ai_wam.utils.number_checks import check_numbers


@dataclass(frozen=True)
class Limits:
    """Limits of a served policy.

    Attributes:
        message_mb: megabytes (10^6 bytes) of one message; a larger one ends its session before it is read.
        rate: requests per second of one session, counted over a second; what is above is refused.
        clients: sessions at once.
        idle_seconds: a session that asks for nothing for so long is ended.
        silent_seconds: a client that answers no ping, or takes no answer, for so long is dropped.
        stop_seconds: time for accepted requests to finish when the server is stopped.
    """

    message_mb: float = 16.0
    rate: float = 100.0
    clients: int = 32
    idle_seconds: float = 600.0
    silent_seconds: float = 20.0
    stop_seconds: float = 30.0

    def __post_init__(self) -> None:
        check_numbers("limits", above=0, **vars(self))

    @property
    def message_bytes(self) -> int:
        """Bytes of one message."""
        return round(self.message_mb * 1e6)


class Rate:
    """Requests of one session over time; a second's worth of them may come at once.

    Args:
        rate: requests per second.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._left, self._at = max(1.0, rate), time.monotonic()

    def count(self) -> None:
        """Count a request.

        Raises:
            ValueError: it is one too many.
        """
        now = time.monotonic()
        self._left = min(max(1.0, self.rate), self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left < 1:
            wait = (1 - self._left) / self.rate
            raise InvalidValue(
                f"more than {self.rate:g} requests per second in this session; wait {wait:.3f} s and ask "
                "again, or have the server started with a larger --limits.rate"
            )
        self._left -= 1

"""What a server counts, in Prometheus' text format."""

from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        kept: dict[str, Any] = {"registry": self._registry}
        seconds = kept | {"buckets": _SECONDS}
        self.ready = Gauge("ai_wam_ready", "1 while requests are answered", **kept)
        self.sessions = Gauge("ai_wam_sessions", "Open sessions", **kept)
        self.refused_sessions = Counter("ai_wam_refused_sessions", "Refused, by reason", ["reason"], **kept)
        self.requests = Counter("ai_wam_requests", "Requests by what became of them", ["outcome"], **kept)
        self.request_seconds = Histogram("ai_wam_request_seconds", "From message to answer", **seconds)
        self.infer_seconds = Histogram("ai_wam_infer_seconds", "Of a request in the network", **seconds)
        self.batch_rows = Histogram("ai_wam_batch_rows", "Rows computed together", buckets=_ROWS, **kept)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)

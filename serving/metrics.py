"""What Prometheus reads from /metrics. Every name begins with sidrec_."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "sidrec_requests", "HTTP requests that were answered.", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "sidrec_request_seconds",
            "From the request's head to the end of the answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_sizes = Histogram(
            "sidrec_batch_size", "Requests that were answered in one batch.", buckets=SIZES, registry=registry
        )
        self.queue = Gauge("sidrec_queue_length", "Requests that wait for the model.", registry=registry)
        self.in_flight = Gauge("sidrec_requests_in_flight", "Requests that are being answered.", registry=registry)
        self.model_seconds = Counter(
            "sidrec_model_seconds", "Seconds that the model's thread worked.", registry=registry
        )
        self.version = Gauge(
            "sidrec_catalogue_version", "Version of the catalogue that is served.", ["model"], registry=registry
        )
        self.lists_logged = Counter("sidrec_lists_logged", "Served lists that the store has.", registry=registry)
        self.lists_lost = Counter(
            "sidrec_lists_lost", "Served lists that were not stored: the store was away for long.", registry=registry
        )
        self.lists_waiting = Gauge("sidrec_lists_waiting", "Served lists that wait for the store.", registry=registry)

    def serves(self, model: str, version: int) -> None:
        self.version.clear()
        self.version.labels(model).set(version)

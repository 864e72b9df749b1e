"""Metrics of a cache of models for Prometheus (extra `serve`): what is loaded, how much is computed, who waits.

Example:
    ```python
    from prometheus_client import start_http_server
    from bge_integrations.metrics import register

    register()
    start_http_server(9464)
    ```

`bge serve` gives the same metrics at `/metrics`.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import groupby
from typing import Any

from bge_integrations.errors import MissingExtraError
from bge_integrations.runtime.cache import ModelCache, default_cache

if find_spec("prometheus_client") is None:
    raise MissingExtraError(
        'bge_integrations.metrics needs prometheus-client. Install it: pip install "bge_integrations[serve]"'
    )

from prometheus_client.core import REGISTRY, CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

__all__ = ["CacheCollector", "register"]

LABELS = ("model", "device", "dtype", "backend")
"""The labels of a model's metrics; revisions of a model that are loaded side by side are added up."""

_GAUGES = {
    "bge_model_bytes": ("bytes", "Bytes of a loaded model's weights on its device."),
    "bge_waiting_calls": ("queue_depth", "Calls that wait for a model or run on it."),
}
_COUNTERS = {
    "bge_batches_total": ("batches", "Forwards that a model has run since it was loaded."),
    "bge_tokens_total": ("tokens", "Tokens that a model has computed since it was loaded."),
    "bge_cut_texts_total": ("truncations", "Texts or pairs that were cut since the model was loaded."),
}
_HISTOGRAMS = {
    "bge_queue_seconds": ("queue_seconds", "Seconds that calls waited for their first forward."),
    "bge_forward_seconds": ("forward_seconds", "Seconds that forwards took, with their wait for the device."),
}
_EVENTS = {
    "bge_model_loads_total": ("loads", "Models that the cache has loaded."),
    "bge_evictions_total": ("evictions", "Models that left the cache because another one needed their memory."),
}
"""For each metric: its name in `ModelCache.stats()`, and what it counts."""

_Labels = tuple[str, ...]
_Groups = list[tuple[_Labels, list[dict[str, Any]]]]


class CacheCollector(Collector):
    """A collector that reads `ModelCache.stats()` each time Prometheus asks; it costs nothing in between.

    The counters of a model begin anew when it is evicted and loaded again, which Prometheus sees as a reset.

    Args:
        cache: The cache; None means the process-wide one.
    """

    def __init__(self, cache: ModelCache | None = None) -> None:
        self._cache = cache or default_cache()

    def collect(self) -> Iterator[Metric]:
        """Give the metrics of now."""
        return _families(self._cache.stats())

    def describe(self) -> Iterator[Metric]:
        """Give the metrics' names without asking the cache."""
        return _families({"models": [], "loads": 0, "evictions": 0})


def register(cache: ModelCache | None = None, registry: CollectorRegistry = REGISTRY) -> CacheCollector:
    """Add a cache's metrics to a registry.

    Args:
        cache: The cache; None means the process-wide one.
        registry: Where to add them; a registry takes one cache.

    Returns:
        The collector, which `registry.unregister` takes.

    Raises:
        ValueError: The registry has a cache's metrics already.
    """
    collector = CacheCollector(cache)
    registry.register(collector)
    return collector


def _families(stats: dict[str, Any]) -> Iterator[Metric]:
    groups = _by_labels(stats["models"])
    for name, (key, text) in _GAUGES.items():
        yield _filled(GaugeMetricFamily(name, text, labels=LABELS), key, groups)
    for name, (key, text) in _COUNTERS.items():
        yield _filled(CounterMetricFamily(name, text, labels=LABELS), key, groups)
    for name, (key, text) in _HISTOGRAMS.items():
        histogram = HistogramMetricFamily(name, text, labels=LABELS)
        for labels, models in groups:
            histogram.add_metric(labels, *_summed([model[key] for model in models]))
        yield histogram
    for name, (key, text) in _EVENTS.items():
        yield CounterMetricFamily(name, text, value=stats[key])


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily, key: str, groups: _Groups
) -> GaugeMetricFamily | CounterMetricFamily:
    for labels, models in groups:
        family.add_metric(labels, sum(model[key] for model in models))
    return family


def _by_labels(models: list[dict[str, Any]]) -> _Groups:
    """Group models by their labels: two samples of the same labels would make Prometheus refuse all."""

    def labels(model: dict[str, Any]) -> _Labels:
        return tuple(str(model[label]) for label in LABELS)

    return [(key, list(group)) for key, group in groupby(sorted(models, key=labels), key=labels)]


def _summed(histograms: Sequence[dict[str, Any]]) -> tuple[list[tuple[str, float]], float]:
    """Return the buckets of histograms that have the same bounds, added up, and their sum of seconds."""
    buckets = list[tuple[str, float]]()
    for same_bound in zip(*(histogram["buckets"] for histogram in histograms), strict=True):
        bound = same_bound[0][0]
        buckets.append((str(bound), float(sum(count for _, count in same_bound))))
    buckets.append(("+Inf", float(sum(histogram["count"] for histogram in histograms))))
    return buckets, sum(histogram["sum"] for histogram in histograms)

"""The metrics are the cache's own counts, in a form that Prometheus reads."""

import subprocess
import sys

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from serving import EMBEDDER, RERANKER

from bge_integrations import BgeEmbedder, BgeReranker, default_cache
from bge_integrations.metrics import CacheCollector, register
from bge_integrations.serve import create_app

TEXTS = ["The giant panda is a bear.", "panda " * 700]


def samples(text):
    """Give every sample's value by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def collected(cache):
    registry = CollectorRegistry()
    register(cache, registry)
    return samples(generate_latest(registry).decode())


def labels_of(model, **more):
    return frozenset({key: model[key] for key in ("model", "device", "dtype", "backend")}.items() | more.items())


class Counts:
    """A cache that gives these statistics."""

    def __init__(self, *models):
        self.models = list(models)

    def stats(self):
        return {"models": self.models, "loads": 7, "evictions": 2}


def counts(revision, tokens):
    histogram = {"count": 3, "sum": 1.5, "buckets": [(0.5, 1), (1.0, 2)]}
    return {
        "model": 'a "quoted" model', "revision": revision, "backend": "torch", "device": "cpu", "dtype": "float32",
        "bytes": 10, "queue_depth": 1, "batches": 2, "tokens": tokens, "truncations": 0,
        "queue_seconds": histogram, "forward_seconds": histogram,
    }  # fmt: skip


def test_metrics_are_the_counts_of_the_cache(cache):
    BgeEmbedder(EMBEDDER, device="cpu", cache=cache, on_truncate="ignore").encode_documents(TEXTS)
    BgeReranker(RERANKER, device="cpu", cache=cache).score([("panda?", TEXTS[0])])
    found, stats = collected(cache), cache.stats()
    assert len(stats["models"]) == 2
    for model in stats["models"]:
        labels = labels_of(model)
        assert found["bge_model_bytes", labels] == model["bytes"] > 0
        assert found["bge_waiting_calls", labels] in (0, 1)  # the queue drops a call a moment after its answer
        assert found["bge_batches_total", labels] == model["batches"] > 0
        assert found["bge_tokens_total", labels] == model["tokens"] > 0
        assert found["bge_cut_texts_total", labels] == model["truncations"]
        for name in ("queue_seconds", "forward_seconds"):
            assert found[f"bge_{name}_count", labels] == model[name]["count"] > 0
            assert found[f"bge_{name}_sum", labels] == pytest.approx(model[name]["sum"])
            buckets = [
                found[f"bge_{name}_bucket", labels_of(model, le=str(bound))] for bound, _ in model[name]["buckets"]
            ]
            assert buckets == [count for _, count in model[name]["buckets"]]
    assert found["bge_model_loads_total", frozenset()] == 2
    assert found["bge_evictions_total", frozenset()] == 0


def test_revisions_side_by_side_are_added_up():
    found = collected(Counts(counts("a", 5), counts("b", 6)))
    labels = labels_of(counts("a", 5))
    assert found["bge_tokens_total", labels] == 11
    assert found["bge_model_bytes", labels] == 20
    assert found["bge_queue_seconds_count", labels] == 6
    assert found["bge_queue_seconds_bucket", labels_of(counts("a", 5), le="1.0")] == 4
    assert found["bge_model_loads_total", frozenset()] == 7


def test_a_registry_takes_one_cache_and_does_not_ask_it(monkeypatch):
    asked = Counts()
    monkeypatch.setattr(asked, "stats", lambda: pytest.fail("it was asked"))
    registry = CollectorRegistry(auto_describe=True)
    collector = register(asked, registry)
    with pytest.raises(ValueError, match="Duplicated"):
        register(Counts(), registry)
    registry.unregister(collector)
    register(Counts(), registry)


def test_no_cache_means_that_of_the_process():
    default_cache().clear()
    BgeEmbedder(EMBEDDER, device="cpu", on_truncate="ignore").encode_queries(TEXTS[:1])
    (model,) = [model for model in default_cache().stats()["models"] if model["model"] == EMBEDDER]
    found = {(s.name, s.labels.get("model")): s.value for family in CacheCollector().collect() for s in family.samples}
    assert found["bge_tokens_total", EMBEDDER] == model["tokens"]
    default_cache().clear()


def test_the_package_needs_no_prometheus():
    script = (
        "import sys, bge_integrations, bge_integrations.embed.embedder; assert 'prometheus_client' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.fixture
def app(cache):
    return create_app([EMBEDDER], cache=cache, api_keys=["sesame"], max_body=10_000)


async def test_answers_are_counted_by_path_and_status(app, cache, monkeypatch):
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": "Bearer sesame"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        body = {"inputs": TEXTS[0]}
        assert (await client.post("/embed", json=body)).status_code == 200
        assert (await client.post("/embed", json=body)).status_code == 200
        assert (await client.post("/embed", json=body, headers={"Authorization": ""})).status_code == 401
        assert (await client.post("/embed", json={"inputs": "x" * 20_000})).status_code == 413
        for path in ("/nothing", "/embed/x", "/%22%7D%0A1", "/bge"):
            assert (await client.get(path)).status_code == 404
        with monkeypatch.context() as patch:
            patch.setattr(cache, "stats", lambda: 1 / 0)
            assert (await client.get("/bge/stats")).status_code == 500
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = samples(answer.text)
    answers = {
        tuple(dict(labels).values()): value
        for (name, labels), value in found.items()
        if name == "bge_http_requests_total"
    }
    assert {tuple(sorted(pair)): value for pair, value in answers.items()} == {
        ("/embed", "200"): 2, ("/embed", "401"): 1, ("/embed", "413"): 1, ("404", "other"): 4, ("/bge/stats", "500"): 1,
    }  # fmt: skip
    assert found["bge_tokens_total", labels_of(cache.stats()["models"][0])] > 0


@pytest.mark.enable_socket
def test_a_server_gives_them(server):
    httpx.post(f"{server}/bge/try", json={"query": "panda?", "passages": TEXTS}, timeout=120).raise_for_status()
    found = samples(httpx.get(f"{server}/metrics", timeout=120).text)
    for model in (EMBEDDER, RERANKER):
        cut = [
            value
            for (name, labels), value in found.items()
            if (name, dict(labels).get("model")) == ("bge_cut_texts_total", model)
        ]
        assert cut[0] > 0
    assert found["bge_http_requests_total", frozenset({"path": "/bge/try", "status": "200"}.items())] > 0

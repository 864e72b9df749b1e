"""The queue over a small real backend: who shares a batch, and who is next."""

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bge_integrations.inference.heads import Dense, Logit
from bge_integrations.types import Pooling

BULK = [f"{number:08}" for number in range(100_000)]
QUERY = "a live query"


def test_a_lone_call(bench, rows_of):
    assert bench.rows(["ab", "", "c"]) == rows_of(["ab", "", "c"])
    assert [seen.texts for seen in bench.seen] == [["ab", "c", ""]]


def test_rows_come_in_the_order_of_the_texts_whatever_their_lengths(bench, rows_of):
    texts = ["x" * (number * 7 % 30) for number in range(300)]
    assert bench.rows(texts) == rows_of(texts)
    assert len(bench.seen) > 10


def test_calls_that_wait_share_one_batch(bench, rows_of):
    texts = [f"query {number}" for number in range(8)]
    futures = []
    bench.on_batch(0, lambda: futures.extend(bench.submit([text], max_batch_tokens=999) for text in texts))
    bench.rows(["first"])
    assert [future.result(timeout=30).rows.tolist() for future in futures] == [rows_of([text]) for text in texts]
    assert sorted(bench.seen[1].texts) == texts


def test_a_text_over_the_budget_runs_alone(bench, rows_of):
    texts = ["short", "x" * 500, "brief"]
    assert bench.rows(texts, max_batch_tokens=20) == rows_of(texts)
    assert [seen.texts for seen in bench.seen] == [["x" * 500], ["brief", "short"]]


HEADS = [Dense(), Dense(normalize=False), Dense(Pooling.MEAN), Logit()]
calls = st.lists(
    st.tuples(
        st.lists(st.integers(0, 40), min_size=1, max_size=30),  # tokens of each text
        st.sampled_from(HEADS),
        st.integers(1, 100),  # max_batch_tokens
    ),
    min_size=1,
    max_size=8,
)


@given(calls=calls, padded=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_batch_obeys_every_call_in_it(make_bench, rows_of, calls, padded):
    bench = make_bench(padded=padded)
    texts = [[chr(65 + number) * length for length in lengths] for number, (lengths, _, _) in enumerate(calls)]
    futures = []

    def submit_all():
        for of_call, (_, head, limit) in zip(texts, calls, strict=True):
            futures.append(bench.submit(of_call, head=head, max_batch_tokens=limit))

    bench.on_batch(0, submit_all)
    bench.rows(["the first batch, which they wait for"])
    assert [future.result(timeout=30).rows.tolist() for future in futures] == [rows_of(own) for own in texts]
    for seen in bench.seen[1:]:
        in_batch = {ord(text[0]) - 65 for text in seen.texts if text}
        assert all(calls[number][1] == seen.head for number in in_batch)
        assert len(seen.texts) == 1 or all(seen.tokens <= calls[number][2] for number in in_batch)
    computed = [text for seen in bench.seen[1:] for text in seen.texts]
    assert sorted(computed) == sorted(text for own in texts for text in own)


@pytest.mark.parametrize("head", [Dense(), Logit()], ids=["same head", "another head"])
@pytest.mark.parametrize("number", [0, 1, 2, 3, 50, 51])
def test_a_query_during_a_bulk_call_is_in_the_next_batch_but_one(bench, rows_of, eventually, number, head):
    queries = []
    bench.on_batch(number, lambda: queries.append(bench.submit([QUERY], head=head, max_batch_tokens=512)))
    bulk = bench.submit(BULK, max_batch_tokens=512)
    eventually(lambda: bool(queries))
    assert queries[0].result(timeout=30).rows.tolist() == rows_of([QUERY])
    bulk.cancel()
    assert bench.batch_of(QUERY) <= number + 2 + bench.ahead


@pytest.mark.parametrize("number", [0, 1, 2, 7, 8])
@pytest.mark.parametrize("started", [True, False], ids=["bulk calls under way", "bulk calls as fresh as the query"])
@pytest.mark.parametrize("head", [Dense(), Logit()], ids=["same head", "another head"])
def test_a_query_among_several_bulk_calls_is_in_the_next_batch_but_one(bench, rows_of, number, started, head):
    futures = []

    def during(seen):
        if len(bench.seen) == (1 if started else number + 1):
            futures.extend(bench.submit(BULK[:1000], max_batch_tokens=512) for _ in range(4))
        if len(bench.seen) == number + 1:
            futures.append(bench.submit([QUERY], head=head, max_batch_tokens=512))

    bench.backend.during = during
    bench.submit(BULK[:1000], max_batch_tokens=512).result(timeout=30)
    assert futures[-1].result(timeout=30).rows.tolist() == rows_of([QUERY])
    assert bench.batch_of(QUERY) <= number + 2 + bench.ahead
    assert all(future.result(timeout=30).rows.tolist() == rows_of(BULK[:1000]) for future in futures[:-1])


@pytest.mark.parametrize("head", [Dense(), Logit()], ids=["same head", "another head"])
def test_fresh_queries_without_end_do_not_starve_a_bulk_call(bench, eventually, head):
    """Each batch brings a new query, so that one is always fresher than the bulk call."""
    queries = []

    def during(seen):
        if len(bench.seen) < 200:
            queries.append(bench.submit([f"query {len(bench.seen)}"], head=head, max_batch_tokens=80))

    bench.backend.during = during
    bulk = bench.submit(BULK[:400], max_batch_tokens=80)  # 40 batches of its own
    bulk.result(timeout=30)
    eventually(lambda: len(bench.seen) >= 200)
    last = max(number for number, seen in enumerate(bench.seen) if any(map(str.isdigit, seen.texts)))
    assert last <= 2 * 40 + 10
    for query in queries:
        query.result(timeout=30)


def test_equal_bulk_calls_advance_together(bench):
    """Whoever came first has no claim on the device until it is done."""
    futures = []
    names = "abcd"
    bench.on_batch(0, lambda: futures.extend(bench.submit([name * 8] * 400, max_batch_tokens=80) for name in names))
    bench.rows(["first"])
    for future in futures:
        future.result(timeout=30)
    half = [seen.texts for seen in bench.seen[1:81]]
    done = [sum(texts.count(name * 8) for texts in half) for name in names]
    assert max(done) - min(done) <= 20  # two batches


def test_long_calls_are_tokenized_in_windows(bench):
    windows = []

    def recording(texts):
        windows.append(len(texts))
        return bench.encode(texts)

    at_first_batch = []
    bench.on_batch(0, lambda: at_first_batch.append(sum(windows)))
    bench.rows(BULK[:5000], max_batch_tokens=80, encode=recording)
    assert sum(windows) == 5000
    assert max(windows) <= 128
    assert at_first_batch[0] <= 256


def test_windows_are_small_where_texts_are_long(bench):
    windows = []

    def recording(texts):
        windows.append(len(texts))
        return bench.encode([text[:5] for text in texts])

    bench.rows(["x" * 200_000] * 10, max_batch_tokens=999, encode=recording)
    assert max(windows) <= 2


class CountingCondition(threading.Condition):
    def __init__(self):
        super().__init__()
        self.waits = []

    def wait(self, timeout=None):
        self.waits.append(timeout)
        return super().wait(timeout)


def test_an_idle_worker_is_never_woken(bench):
    """It waits without a timer, at most once a call: nothing can wake it but a new call."""
    bench.queue._condition = CountingCondition()
    for number in range(20):
        bench.rows([f"text {number}"])
    assert len(bench.queue._condition.waits) <= 21
    assert set(bench.queue._condition.waits) <= {None}


def test_counters(bench):
    bench.rows(["abc", "de"])
    bench.rows(["f"])
    assert (bench.queue.batches, bench.queue.tokens, bench.queue.truncated) == (2, 6, 0)


def test_the_next_batch_is_tokenized_and_launched_while_the_device_computes(make_bench, rows_of):
    bench = make_bench(detached=True)
    launched, second = threading.Event(), [f"{number:064}" for number in range(2)]
    run = bench.backend.run

    def observed(batch, head, *, exact=False):
        result = run(batch, head, exact=exact)
        if len(batch.ids) == 128:
            launched.set()
        return result

    bench.backend.run = observed
    calls = []
    bench.on_batch(0, lambda: calls.append(bench.submit(second, max_batch_tokens=128)) or launched.wait(30))
    assert bench.rows(["first"]) == rows_of(["first"])
    assert launched.is_set()
    assert calls[0].result(timeout=30).rows.tolist() == rows_of(second)

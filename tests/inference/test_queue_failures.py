"""The queue when things go wrong: errors, cancellation, too many calls, closing, memory, NaN."""

import asyncio
import logging
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest

from bge_integrations.errors import ClosedError, DeviceLostError, InputTooLongError, NonFiniteError, OverloadedError
from bge_integrations.inference.batch import Encoding
from bge_integrations.inference.engine import CLEAN_BATCHES
from bge_integrations.inference.heads import Logit

TEXTS = [f"{number:08}" for number in range(400)]


class WorkerGone(BaseException):
    """Something that `except Exception` does not catch."""


ERRORS = [RuntimeError("broken"), WorkerGone("broken"), RuntimeError("CUDA out of memory")]


@pytest.fixture
def share(bench):
    """Has calls wait while a first batch runs, so that those of one head share the second; gives their futures."""

    def share(*calls, during):
        futures = []

        def waiting(seen):
            if len(bench.seen) == 1:
                futures.extend(bench.submit(texts, **arguments) for texts, arguments in calls)
            else:
                during(seen)

        bench.backend.during = waiting
        bench.rows(["first"])
        return futures

    return share


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_of_a_shared_batch_reaches_the_call_it_comes_from_alone(bench, rows_of, share, error):
    def during(seen):
        if "guilty" in seen.texts:
            raise error

    texts = [f"call {number}" for number in range(20)]
    calls = [([text], {"max_batch_tokens": 999}) for text in [*texts, "guilty"]]
    futures = share(*calls, (["of another head"], {"head": Logit()}), during=during)
    assert [future.exception(timeout=30) for future in futures] == [None] * 20 + [error, None]
    assert [future.result().rows.tolist() for future in futures[:20]] == [rows_of([text]) for text in texts]
    assert sum("guilty" in seen.texts for seen in bench.seen) == 2
    assert len(bench.seen) == 1 + 1 + 21 + 1  # the first, the shared one, each of its calls, the other head
    assert bench.rows(["after"]) == rows_of(["after"])


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_of_every_batch_reaches_every_caller_and_the_worker_lives_on(bench, rows_of, share, error):
    broken = True

    def during(seen):
        if broken:
            raise error

    futures = share(*(([text], {}) for text in "abc"), during=during)
    assert [future.exception(timeout=30) for future in futures] == [error] * 3
    assert len(bench.seen) == 1 + 1 + 3
    broken = False
    assert bench.rows(["after"]) == rows_of(["after"])


def test_an_error_that_does_not_come_again_reaches_nobody(bench, rows_of, share):
    def during(seen):
        if len(bench.seen) == 2:
            raise RuntimeError("once")

    futures = share(*(([text], {}) for text in "abc"), during=during)
    assert [future.result(timeout=30).rows.tolist() for future in futures] == [rows_of([text]) for text in "abc"]
    assert [len(seen.texts) for seen in bench.seen] == [1, 3, 1, 1, 1]


def test_a_bulk_call_that_shared_a_failing_batch_goes_on_and_shares_again(bench, rows_of, share):
    def during(seen):
        if "guilty" in seen.texts:
            raise RuntimeError("broken")
        if len(bench.seen) == 12:
            late.append(bench.submit(["late"]))

    late = []
    bulk, guilty, query = share((TEXTS, {}), (["guilty"], {}), (["query"], {}), during=during)
    assert str(guilty.exception(timeout=30)) == "broken"
    assert query.result(timeout=30).rows.tolist() == rows_of(["query"])
    assert bulk.result(timeout=30).rows.tolist() == rows_of(TEXTS)
    assert late[0].result(timeout=30).rows.tolist() == rows_of(["late"])
    assert len(bench.seen[bench.batch_of("late")].texts) > 1
    assert len(bench.seen) < 60  # some 50 of the bulk call's own


def test_a_lost_device_fails_every_call_of_the_batch_at_once(bench, share):
    error = DeviceLostError("CUDA error: device-side assert triggered")

    def during(seen):
        raise error

    futures = share(*(([text], {}) for text in "abc"), during=during)
    assert [future.exception(timeout=30) for future in futures] == [error] * 3
    assert len(bench.seen) == 2


def test_a_call_that_can_not_be_tokenized_fails_alone_and_names_its_text(bench, rows_of):
    futures = []
    bad = [*TEXTS[:200], "b\ud800d", *TEXTS[200:]]
    bench.on_batch(0, lambda: futures.extend(bench.submit(texts) for texts in (["a"], bad, ["c"])))
    bench.rows(["first"])
    with pytest.raises(ValueError, match=r"Text 200 holds a lone surrogate \('\\ud800' at character 1\)"):
        futures[1].result(timeout=30)
    assert futures[0].result(timeout=30).rows.tolist() == rows_of(["a"])
    assert futures[2].result(timeout=30).rows.tolist() == rows_of(["c"])


@pytest.mark.parametrize("error", [LookupError("strange"), WorkerGone("a Rust panic")])
def test_any_other_error_of_the_tokenizer_reaches_the_call_as_it_is(bench, rows_of, error):
    def broken(texts):
        raise error

    assert bench.submit(["x"], encode=broken).exception(timeout=30) is error
    assert bench.rows(["after"]) == rows_of(["after"])


def test_a_check_that_refuses_an_encoding_fails_its_call_alone(bench, rows_of):
    def check(index, encoding):
        if len(encoding) > 3:
            raise InputTooLongError(f"text {index}")

    with pytest.raises(InputTooLongError, match="text 2"):
        bench.submit(["a", "b", "long", "longer"], check=check).result(timeout=30)
    assert bench.rows(["after"]) == rows_of(["after"])


def test_texts_that_were_cut_are_told(bench):
    def cutting(texts):
        return [Encoding(np.arange(min(3, len(text))), None, len(text)) for text in texts]

    output = bench.submit(["ab", "abcdef", "abc", "abcd"], encode=cutting).result(timeout=30)
    assert [(cut.index, cut.full_length) for cut in output.cuts] == [(1, 6), (3, 4)]
    assert bench.queue.truncated == 2


@pytest.mark.parametrize("number", [0, 5])
def test_a_cancelled_call_is_dropped_within_one_batch(bench, rows_of, number):
    futures = []

    def during(seen):
        if len(bench.seen) == 1:
            futures.append(bench.submit(TEXTS))
        elif len(bench.seen) == 2 + number:
            futures[0].cancel()

    bench.backend.during = during
    bench.rows(["first"])
    with pytest.raises(CancelledError):
        futures[0].result(timeout=30)
    assert bench.rows(["after"]) == rows_of(["after"])
    assert len(bench.seen) - 1 - (1 + number) - 1 in (0, bench.ahead)


def test_cancelling_in_its_last_batch_hurts_nobody(bench, rows_of):
    futures = []

    def during(seen):
        if len(bench.seen) == 1:
            futures.extend(bench.submit([text]) for text in "ab")
        else:
            futures[0].cancel()

    bench.backend.during = during
    bench.rows(["first"])
    assert futures[1].result(timeout=30).rows.tolist() == rows_of(["b"])
    assert futures[0].cancelled()
    assert bench.rows(["after"]) == rows_of(["after"])


async def test_cancelling_a_coroutine_cancels_its_call(bench):
    started, cancelled = threading.Event(), threading.Event()

    def during(seen):
        if len(bench.seen) == 2:
            started.set()
            assert cancelled.wait(timeout=30)

    bench.backend.during = during
    call = bench.submit(TEXTS)
    task = asyncio.ensure_future(asyncio.wrap_future(call))
    await asyncio.to_thread(started.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)  # asyncio hands the cancellation on in its next round
    cancelled.set()
    await asyncio.wrap_future(bench.submit(["after"]))
    assert len(bench.seen) - 3 in (0, bench.ahead)


def test_one_call_too_many_is_refused_at_once(make_bench, rows_of):
    bench = make_bench(max_waiting=3)
    futures, refused = [], []

    def fill():
        futures.extend(bench.submit([text]) for text in "ab")
        try:
            bench.submit(["c"])
        except OverloadedError as error:
            refused.append(str(error))

    bench.on_batch(0, fill)
    assert bench.rows(["first"]) == rows_of(["first"])
    assert len(refused) == 1
    assert refused[0].startswith("3 calls wait for this model already. Try again later,")
    assert [future.result(timeout=30).rows.tolist() for future in futures] == [rows_of(["a"]), rows_of(["b"])]
    assert bench.rows(["after"]) == rows_of(["after"])


def test_patient_calls_are_admitted_in_their_order_and_none_is_refused(make_bench, rows_of):
    bench = make_bench(max_waiting=3)
    texts = [f"{number:08}" for number in range(50)]
    futures = []
    bench.on_batch(0, lambda: futures.extend(bench.submit([text], patient=True) for text in texts))
    bench.rows(["first"])
    assert [future.result(timeout=30).rows.tolist() for future in futures] == [rows_of([text]) for text in texts]
    assert [text for seen in bench.seen[1:] for text in sorted(seen.texts)] == texts
    assert max(len(seen.texts) for seen in bench.seen) == 3
    assert bench.queue.depth == 0


def test_calls_outside_count_as_waiting_and_leave_when_they_are_cancelled(make_bench, rows_of):
    bench = make_bench(max_waiting=2)
    futures, depths = [], []

    def fill():
        futures.extend(bench.submit([text], patient=True) for text in "abcde")
        depths.append(bench.queue.depth)
        with pytest.raises(OverloadedError, match="6 calls wait"):
            bench.submit(["hasty"])
        for future in futures[1:4]:
            future.cancel()
        depths.append(bench.queue.depth)

    bench.on_batch(0, fill)
    bench.rows(["first"])
    assert futures[0].result(timeout=30).rows.tolist() == rows_of(["a"])
    assert futures[4].result(timeout=30).rows.tolist() == rows_of(["e"])
    assert depths == [6, 3]
    assert not {"b", "c", "d"} & {text for seen in bench.seen for text in seen.texts}


def test_closing_fails_the_calls_outside_too(make_bench):
    bench = make_bench(max_waiting=2)
    futures = []

    def fill():
        futures.extend(bench.submit([text], patient=True) for text in "abc")
        bench.queue.close()

    bench.on_batch(0, fill)
    bench.rows(["first"])
    for future in futures:
        assert isinstance(future.exception(timeout=30), ClosedError)


def test_closing_finishes_the_running_batch_and_fails_what_waits(bench, rows_of):
    waiting = []

    def during(seen):
        waiting.append(bench.submit(["waits"]))
        bench.queue.close()

    bench.backend.during = during
    assert bench.rows(["runs"]) == rows_of(["runs"])
    with pytest.raises(ClosedError):
        waiting[0].result(timeout=30)
    bench.queue.join(timeout=30)
    assert len(bench.seen) == 1
    with pytest.raises(ClosedError):
        bench.submit(["late"])


def test_closing_a_queue_that_never_ran(bench):
    bench.queue.close()
    bench.queue.join()
    with pytest.raises(ClosedError):
        bench.submit(["late"])


def test_rows_that_are_not_finite_are_computed_again_exactly(bench, rows_of, caplog):
    bench.backend.finite = lambda text, exact: exact or not text.startswith("bad")
    texts = ["good", "bad 1", "fine", "bad 2"]
    with caplog.at_level(logging.WARNING):
        assert bench.rows(texts) == rows_of(texts)
    seen = [(sorted(seen.texts), seen.exact) for seen in bench.seen]
    assert seen == [(sorted(texts), False), (["bad 1", "bad 2"], True)]
    assert "2 of 4 rows were not finite" in caplog.text


def test_a_row_that_stays_so_fails_its_call_and_no_other(bench, rows_of):
    bench.backend.finite = lambda text, exact: text != "bad"
    futures = []
    calls = (["a", "bad"], ["b"], ["bad"], ["bad"] * 3)
    bench.on_batch(0, lambda: futures.extend(bench.submit(texts) for texts in calls))
    bench.rows(["first"])
    for future, index in [(futures[0], 1), (futures[2], 0), (futures[3], "[0-2]")]:
        with pytest.raises(NonFiniteError, match=f"for text {index}, in float32 too"):
            future.result(timeout=30)
    assert futures[1].result(timeout=30).rows.tolist() == rows_of(["b"])
    assert bench.rows(["after"]) == rows_of(["after"])


@pytest.mark.parametrize("padded", [True, False])
def test_out_of_memory_halves_the_budget_and_is_remembered(make_bench, rows_of, caplog, padded):
    bench = make_bench(padded=padded)
    bench.backend.capacity = 100
    with caplog.at_level(logging.WARNING):
        assert bench.rows(TEXTS[:100], max_batch_tokens=320) == rows_of(TEXTS[:100])
    assert [seen.tokens for seen in bench.seen[:5]] == [320, 160, 80, 80, 80]
    assert "out of memory at 320 tokens per batch; going on with 160" in caplog.text
    before = len(bench.seen)
    assert bench.rows(TEXTS[:20], max_batch_tokens=320) == rows_of(TEXTS[:20])
    assert [seen.tokens for seen in bench.seen[before:]] == [80, 80]


def test_the_budget_grows_back_after_clean_batches(bench, rows_of):
    bench.backend.capacity = 100
    bench.rows(TEXTS[:16], max_batch_tokens=128)
    assert [seen.tokens for seen in bench.seen] == [128, 64, 64]
    bench.backend.capacity = 10**9
    assert bench.rows(TEXTS * 2, max_batch_tokens=256) == rows_of(TEXTS * 2)
    sizes = [seen.tokens for seen in bench.seen]
    clean = sizes.index(128, 1) - 1
    assert clean - CLEAN_BATCHES in (0, bench.ahead)
    assert sizes[clean + 1 : clean + 1 + CLEAN_BATCHES] == [128] * CLEAN_BATCHES
    assert sizes[clean + 1 + CLEAN_BATCHES + bench.ahead] == 256


def test_one_text_that_can_not_fit_fails_with_its_index_and_length(bench, rows_of):
    bench.backend.capacity = 50
    futures = []
    texts = ["a", "x" * 60, "b"]
    bench.on_batch(0, lambda: futures.extend(bench.submit(part) for part in (texts, ["c"])))
    bench.rows(["first"])
    with pytest.raises(InputTooLongError, match="Text 1 has 60 tokens"):
        futures[0].result(timeout=30)
    assert futures[1].result(timeout=30).rows.tolist() == rows_of(["c"])
    assert bench.rows(["after"]) == rows_of(["after"])


def test_a_batch_in_flight_is_still_delivered_when_the_queue_closes(make_bench, rows_of):
    bench = make_bench(detached=True)
    bench.on_batch(0, bench.queue.close)
    first = bench.submit(["first"])
    assert first.result(timeout=30).rows.tolist() == rows_of(["first"])
    bench.queue.join(timeout=30)
    assert not bench.queue.worker.is_alive()


def test_the_last_call_cancelled_in_flight_leaves_nothing_waiting(make_bench, eventually, rows_of):
    bench, under_way, cancelled = make_bench(detached=True), threading.Event(), threading.Event()
    bench.on_batch(0, lambda: under_way.set() or cancelled.wait(30))
    call = bench.submit(["first"])
    under_way.wait(30)
    call.cancel()
    cancelled.set()
    eventually(lambda: bench.queue.batches == 1)
    assert call.cancelled()
    assert bench.rows(["after"]) == rows_of(["after"])

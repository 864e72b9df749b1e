"""Forwards on one device take turns, in the order in which they asked."""

import sys
import threading
from pathlib import Path

import pytest

from bge_integrations import process
from bge_integrations.process import DeviceLock, device_lock


def test_whoever_asked_first_is_first(eventually):
    lock, order = DeviceLock(), []

    def take(name):
        with lock:
            order.append(name)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    with lock:
        for number, thread in enumerate(threads, 1):
            thread.start()
            eventually(lambda number=number: len(lock._waiting) == number)
    take("who lets go and asks again")
    for thread in threads:
        thread.join()
    assert order == [*range(8), "who lets go and asks again"]


def test_only_one_holds_it():
    lock, inside, most = DeviceLock(), [], []

    def work():
        for _ in range(300):
            with lock:
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 2400
    assert set(most) == {1}


def test_an_error_lets_go():
    lock = DeviceLock()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), lock:
            1 / 0  # noqa: B018
    with lock:
        assert lock._held
    assert not lock._held


def test_two_queues_on_one_device_take_turns(make_bench, eventually):
    lock = DeviceLock()
    bulk, live = make_bench(device=lock), make_bench(device=lock)
    order, queries = [], []

    def during_bulk(seen):
        order.append("bulk")
        if len(bulk.seen) == 3:
            queries.append(live.submit(["a query"]))
            eventually(lambda: len(lock._waiting) == 1)

    bulk.backend.during = during_bulk
    live.backend.during = lambda seen: order.append("live")
    bulk.rows(["x" * 10] * 60)
    queries[0].result(timeout=30)
    assert order == ["bulk"] * 3 + ["live"] + ["bulk"] * 7


def test_a_device_has_one_lock_until_a_fork():
    before = device_lock("cuda:7")
    assert device_lock("cuda:7") is before is not device_lock("cuda:8")
    process.renew_locks()
    assert device_lock("cuda:7") is not before


def test_whoever_gives_up_waiting_leaves_no_trace():
    lock = DeviceLock()
    with lock:
        assert not lock.acquire(0.01)
        assert not lock._waiting
    assert lock.acquire(0.01)


def test_a_fork_waits_for_the_forward_that_runs(eventually):
    lock, order = device_lock("cuda:9"), []

    def fork():
        process.hold_devices()
        order.append("fork")
        process.let_devices_go()

    thread = threading.Thread(target=fork)
    with lock:
        thread.start()
        eventually(lambda: len(lock._waiting) == 1)
        order.append("forward")
    thread.join()
    assert order == ["forward", "fork"]
    assert not lock._held


def test_a_fork_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(process, "_FORK_SECONDS", 0.01)
    lock = device_lock("cuda:9")
    with lock:
        process.hold_devices()
        process.let_devices_go()
        assert lock._held
    assert not lock._held


@pytest.mark.skipif(sys.platform != "linux", reason="other systems say nothing of a thread that has finished")
def test_a_fork_waits_for_threads_on_their_way_out():
    go, order = threading.Event(), []

    def fork():
        process.hold_devices()
        order.append("fork")
        process.let_devices_go()

    leaving, forking = threading.Thread(target=go.wait), threading.Thread(target=fork)
    leaving.start()
    process._ended.append(leaving.native_id)
    forking.start()
    order.append("the thread goes")
    go.set()
    forking.join()
    assert order == ["the thread goes", "fork"]
    assert not Path(f"/proc/self/task/{leaving.native_id}").exists()


def test_a_finished_thread_is_remembered_until_a_fork(eventually):
    process.hold_devices()
    process.let_devices_go()
    thread = process.PackageThread("bge-test", lambda: None)
    thread.start()
    thread.join()
    assert thread.native_id in process._ended
    process.hold_devices()
    process.let_devices_go()
    assert thread.native_id not in process._ended

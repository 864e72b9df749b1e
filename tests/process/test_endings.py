"""A script that ends, raises or gets Ctrl-C in the middle of a call ends at once, with nothing but its own say."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parent / "scripts" / "endings.py"
ENVIRONMENT = dict(os.environ)
"""A copy for scripts that start beside other tests: pytest changes the process's own at each, and that may be within an
exec."""
SECONDS = 2
"""The promise, on a machine that does nothing else; Python's own end, with torch imported, is one of them."""
SECONDS_BESIDE_OTHERS = 20

ENDINGS = {  # way: exit code, last line of stderr
    "end": (0, None),
    "end_while_loading": (0, None),
    "end_while_loading_again": (0, None),
    "exit_code": (3, None),
    "error": (1, "RuntimeError: the script's own"),
    "error_in_a_coroutine": (1, "RuntimeError: the script's own, with Task-2 pending"),
    "interrupt": (-signal.SIGINT, "KeyboardInterrupt"),
    "interrupt_a_coroutine": (-signal.SIGINT, "KeyboardInterrupt"),
    "interrupt_a_long_forward": (-signal.SIGINT, "KeyboardInterrupt"),
    "interrupt_while_importing_torch": (-signal.SIGINT, "KeyboardInterrupt"),
    "interrupt_while_importing_transformers": (-signal.SIGINT, "KeyboardInterrupt"),
}


def run(way, folder):
    """The script's exit code, stderr, and seconds of wall and of CPU time from the middle of the call to its end."""
    command = [sys.executable, SCRIPT, way, folder]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=ENVIRONMENT) as script:
        assert script.stdout.readline() == "now\n", script.communicate()
        limit = threading.Timer(60, script.kill)
        limit.start()
        began, computed = time.monotonic(), sum(psutil.Process(script.pid).cpu_times()[:2])
        if way.startswith("interrupt"):
            script.send_signal(signal.SIGINT)
        errors = script.stderr.read()
        _, status, usage = os.wait4(script.pid, 0)
        script.returncode = os.waitstatus_to_exitcode(status)
        limit.cancel()
        wall = time.monotonic() - began
        return script.returncode, errors, wall, usage.ru_utime + usage.ru_stime - computed


@pytest.fixture(scope="module")
def runs(bert_embedder):
    """Every script, two at a time, begun with the first test."""
    with ThreadPoolExecutor(2) as pool:
        yield {way: pool.submit(run, way, str(bert_embedder)) for way in ENDINGS}


@pytest.mark.parametrize("way", ENDINGS)
def test_it_ends(way, runs):
    code, last_line = ENDINGS[way]
    actual, errors, wall, cpu = runs[way].result(100)
    assert actual == code, errors
    assert min(wall, cpu) < SECONDS
    assert wall < SECONDS_BESIDE_OTHERS
    if last_line is None:
        assert errors == ""
    else:
        assert errors.startswith("Traceback (most recent call last):\n")
        assert errors.splitlines()[-1] == last_line
        assert "Exception ignored" not in errors
        assert "Exception in thread" not in errors


HANGING = """
from threading import Event
from time import monotonic
from bge_integrations.process import Background, stop_threads

begun = Event()
background = Background(1, "populate")
background.submit(lambda: (begun.set(), Event().wait(60)))
begun.wait()
started = monotonic()
stop_threads()
print(monotonic() - started)
"""


def test_a_store_that_never_answers_holds_the_end_up_for_half_a_second():
    told = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60, check=True)
    assert 0.4 < float(told.stdout) < 1

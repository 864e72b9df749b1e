"""A script that ends, raises or gets Ctrl-C in the middle of a call ends at once, with nothing but its own say."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "scripts" / "endings.py"
SECONDS = 10
"""The promise is 2 s on a machine that does nothing else; Python's own end, with torch imported, is one of them."""

ENDINGS = {  # way: exit code, last line of stderr
    "end": (0, None),
    "end_while_loading": (0, None),
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
    """The script's exit code, stderr, and seconds from the middle of the call to its end."""
    script = subprocess.Popen(
        [sys.executable, SCRIPT, way, folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert script.stdout.readline() == "now\n", script.communicate()
        began = time.monotonic()
        if way.startswith("interrupt"):
            script.send_signal(signal.SIGINT)
        _, errors = script.communicate(timeout=60)
        return script.returncode, errors, time.monotonic() - began
    finally:
        script.kill()


@pytest.fixture(scope="module")
def runs(bert_embedder):
    """Every script, two at a time, begun with the first test."""
    with ThreadPoolExecutor(2) as pool:
        yield {way: pool.submit(run, way, str(bert_embedder)) for way in ENDINGS}


@pytest.mark.parametrize("way", ENDINGS)
def test_it_ends(way, runs):
    code, last_line = ENDINGS[way]
    actual, errors, seconds = runs[way].result(100)
    assert actual == code, errors
    assert seconds < SECONDS
    if last_line is None:
        assert errors == ""
    else:
        assert errors.startswith("Traceback (most recent call last):\n")
        assert errors.splitlines()[-1] == last_line
        assert "Exception ignored" not in errors
        assert "Exception in thread" not in errors

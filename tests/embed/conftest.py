import time

import pytest


@pytest.fixture
def until():
    """Waits for a worker to come round; fails after ten seconds."""

    def wait(condition):
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    return wait

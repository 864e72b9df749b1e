"""Clients of every kind at a time, of which some leave halfway: every answer is right, and no call is lost."""

import pytest


@pytest.mark.slow
@pytest.mark.enable_socket
def test_clients_that_come_and_go_get_right_answers():
    from benchmarks.soak_server import soak

    told = soak(20, 64)
    assert (told["calls wrong"], told["calls lost"]) == (0, 0)
    assert told["calls still running on the server ten seconds later"] == 0
    for way in ("by cache=", "by cache=, of a reranker", "as OpenAI's JSON"):
        assert told[f"calls answered {way}"] > 0
    assert told["calls cancelled"] > 0
    assert told["calls broken off within the answer"] > 0
    assert told["lines that the server logged"] == 0

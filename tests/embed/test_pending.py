"""Documents queued without waiting."""

import numpy as np
import pytest
import tiny

from bge_integrations import BgeEmbedder, BgeM3Embedder, InputTooLongError

LINES = tiny.TEXT.strip().splitlines()


@pytest.mark.parametrize("devices", ["cpu", ["cpu", "cpu"]], ids=["one device", "two"])
def test_what_comes_is_what_encode_documents_gives(bert_embedder, cache, devices):
    embedder = BgeEmbedder(str(bert_embedder), cache=cache, device=devices)
    batches = [LINES[:5], LINES[5:], LINES[:1]]
    before = [embedder.submit_documents(batch) for batch in batches]
    for batch, pending in zip(batches, before, strict=True):
        vectors, tokens = pending.result()
        np.testing.assert_allclose(vectors, embedder.encode_documents(batch), atol=1e-6, rtol=0)
        assert tokens > len(batch)
    assert sum(model["tokens"] for model in cache.stats()["models"]) == 2 * sum(p.result()[1] for p in before)


def test_texts_that_are_cut_are_told_when_they_are_awaited(bert_embedder, cache):
    long = BgeEmbedder(str(bert_embedder), cache=cache, max_length=4).submit_documents(LINES)
    with pytest.warns(UserWarning, match="to 4 tokens"):
        long.result()
    strict = BgeEmbedder(str(bert_embedder), cache=cache, max_length=4, on_truncate="raise").submit_documents(LINES)
    with pytest.raises(InputTooLongError):
        strict.result()


def test_bad_texts_are_refused_at_once(bert_embedder, cache):
    with pytest.raises(TypeError, match=r"texts\[1\] is NoneType"):
        BgeEmbedder(str(bert_embedder), cache=cache).submit_documents(["a", None])


def test_embeddings_of_some_of_the_texts(tmp_path, cache):
    m3 = BgeM3Embedder(str(tiny.make_m3(tmp_path / "m3")), like="BAAI/bge-m3", cache=cache)
    whole = m3.encode_documents(LINES[:6])
    part = whole[2:5]
    assert len(part) == 3
    np.testing.assert_array_equal(part.dense, whole.dense[2:5])
    assert part.sparse == whole.sparse[2:5]
    assert [id(vectors) for vectors in part.colbert] == [id(vectors) for vectors in whole.colbert[2:5]]
    assert m3.with_outputs("dense").encode_documents(LINES[:3])[:1].sparse is None

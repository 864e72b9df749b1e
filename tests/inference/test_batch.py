"""Flat batches and the arithmetic of what fits one forward."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_integrations.inference.batch import BatchSize, Encoding, TokenBatch

ids = st.lists(st.integers(0, 9), min_size=1, max_size=12)


@settings(deadline=None)
@given(texts=st.lists(ids, min_size=1, max_size=10), with_types=st.booleans(), pad_id=st.integers(0, 9))
def test_padded_round_trips(texts, with_types, pad_id):
    encodings = [Encoding(np.array(text), np.array(text) % 2 if with_types else None, len(text)) for text in texts]
    batch = TokenBatch.of(encodings)
    ids, mask, types = batch.padded(pad_id)
    assert len(batch) == len(texts)
    assert batch.lengths.tolist() == [len(text) for text in texts]
    assert ids.shape == mask.shape == (len(texts), batch.max_seqlen)
    assert (ids.dtype, mask.dtype) == (np.int64, np.int64)
    assert [row[: len(text)].tolist() for row, text in zip(ids, texts, strict=True)] == texts
    assert (ids[mask == 0] == pad_id).all()
    assert mask.sum(axis=1).tolist() == batch.lengths.tolist()
    assert (np.diff(mask, axis=1) <= 0).all()  # padding on the right
    if with_types:
        assert types[mask == 1].tolist() == batch.types.tolist()
        assert not types[mask == 0].any()
    else:
        assert types is None is batch.types


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1), budget=st.integers(1, 200), padded=st.booleans())
def test_the_budget_is_never_exceeded_but_by_a_lone_text(lengths, budget, padded):
    batches, size = [[]], BatchSize(padded)
    for length in lengths:
        if not size.add(length, budget):
            batches.append([])
            size = BatchSize(padded)
            assert size.add(length, budget)
        batches[-1].append(length)
        assert size.tokens == (max(batches[-1]) * len(batches[-1]) if padded else sum(batches[-1]))
        assert size.tokens <= budget or len(batches[-1]) == 1
    assert [length for batch in batches for length in batch] == lengths


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1))
def test_padding_is_counted_where_it_is_computed(lengths):
    padded, packed = BatchSize(padded=True), BatchSize(padded=False)
    for length in lengths:
        assert padded.add(length)
        assert packed.add(length)
    assert padded.tokens == max(lengths) * len(lengths)
    assert packed.tokens == sum(lengths)

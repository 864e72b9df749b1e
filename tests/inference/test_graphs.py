"""What fills a batch up to a CUDA graph's size changes no text; the graphs themselves, where there is a GPU."""

from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModel

from bge_integrations.architectures import architecture_of
from bge_integrations.inference.backends.base import Launched
from bge_integrations.inference.backends.graphs import SIZES, TEXTS, ForwardGraphs, filled, graph_size
from bge_integrations.inference.backends.pytorch import TorchBackend, packed_hidden, positions
from bge_integrations.inference.backends.varlen import NAME
from bge_integrations.inference.batch import TokenBatch
from bge_integrations.inference.heads import Dense

QUERIES = ["", "what is a panda?", "[PAD] and <pad>", "the capital of France " * 20]


@pytest.fixture(params=["bert", "xlmr"])
def embedder(request, bert_embedder, xlmr_embedder):
    return {"bert": bert_embedder, "xlmr": xlmr_embedder}[request.param]


def arrays_of(model, batch):
    types = {} if batch.types is None else {"token_type_ids": batch.types[None]}
    after = model.config.pad_token_id if architecture_of(model.config.model_type).starts_after_padding else None
    places = positions(batch, after)
    cu_seqlens = batch.cu_seqlens.astype(np.int32)
    return {"input_ids": batch.ids[None], "position_ids": places[None], "cu_seqlens": cu_seqlens, **types}


def hidden_of(model, arrays):
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.inference_mode():
        return packed_hidden(model, inputs, int(np.diff(arrays["cu_seqlens"]).max()))


@pytest.mark.parametrize("queries", [QUERIES[:1], QUERIES[1:3], QUERIES, ["panda"] * (TEXTS - 1)])
def test_a_filled_batch_gives_the_same_hidden_states(embedder, queries, text_tokenizer):
    model = AutoModel.from_pretrained(embedder, attn_implementation=NAME).eval()
    arrays = arrays_of(model, TokenBatch.of(text_tokenizer(embedder).texts(queries, max_length=512)))
    tokens = arrays["input_ids"].shape[1]
    size = graph_size(tokens, len(queries))
    full = filled(arrays, size)
    assert {name: array.shape for name, array in full.items() if name != "cu_seqlens"} == {
        name: (1, size) for name in arrays if name != "cu_seqlens"
    }
    assert {name: array.dtype for name, array in full.items()} == {name: array.dtype for name, array in arrays.items()}
    assert full["cu_seqlens"].shape == (TEXTS + 1,)
    assert (np.diff(full["cu_seqlens"]) > 0).all()
    torch.testing.assert_close(hidden_of(model, full)[:tokens], hidden_of(model, arrays), atol=1e-5, rtol=0)


def test_sizes():
    """Every text that fills up has a token at least."""
    assert graph_size(10, 1) == 64
    assert graph_size(64 - TEXTS + 1, 1) == 64
    assert graph_size(64 - TEXTS + 2, 1) == 128
    assert graph_size(SIZES[-1] - 1, TEXTS - 1) == SIZES[-1]
    assert graph_size(SIZES[-1], TEXTS - 1) is None
    assert graph_size(40, TEXTS) is None


@pytest.mark.gpu
def test_a_graph_gives_what_the_plain_forward_gives(embedder, text_tokenizer, torch_backend):
    def rows(backend, batch):
        launched = backend.run(batch, Dense())
        assert isinstance(launched, Launched)
        return launched.rows()

    plain = torch_backend(embedder, packed=True, dtype=torch.float16, device="cuda")
    graphs = ForwardGraphs(partial(packed_hidden, plain._model), plain._model.device)
    graphed = TorchBackend(plain._model, packed=True, engine="packed", graphs=graphs)
    for queries in (QUERIES, *([query] for query in QUERIES), QUERIES[::-1]):
        batch = TokenBatch.of(text_tokenizer(embedder).texts(queries, max_length=512))
        np.testing.assert_allclose(rows(graphed, batch), rows(plain, batch), atol=2e-3, rtol=0)
    assert graphs._captured

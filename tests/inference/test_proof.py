"""A model runs packed only where a packed row was shown to give what each text gives alone."""

import pytest
import tiny
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from bge_integrations.inference.backends import varlen
from bge_integrations.inference.backends.proof import packing_fault
from bge_integrations.inference.backends.pytorch import TorchBackend
from bge_integrations.inference.heads import Dense, Logit


def fault_of(model, head):
    packed, alone = (TorchBackend(model, packed=packed, engine="a test") for packed in (True, False))
    return packing_fault(model.base_model.encoder.layer[-1], head, packed=packed, alone=alone)


@pytest.fixture(params=["bert", "xlmr"])
def embedder(request, bert_embedder, xlmr_embedder):
    folder = {"bert": bert_embedder, "xlmr": xlmr_embedder}[request.param]
    return AutoModel.from_pretrained(folder, attn_implementation=varlen.NAME)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_our_attention_is_sound_in_every_dtype(embedder, dtype):
    assert fault_of(embedder.to(dtype), Dense()) == ""
    assert embedder.config._attn_implementation == varlen.NAME


@pytest.mark.parametrize("make", [tiny.make_bert_reranker, tiny.make_xlmr_reranker])
def test_a_rerankers_head_is_compared_too(make, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(make(tmp_path / "model"), attn_implementation="sdpa")
    assert fault_of(model, Logit()) == ""
    model.classifier.register_forward_pre_hook(lambda module, args: (args[0].flip(0),))
    assert "would not give" in fault_of(model, Logit())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_layer_with_an_attention_of_its_own_is_found(embedder, dtype):
    def attends_to_all(module, args, output):
        return (output[0] + output[0].mean(dim=1, keepdim=True), *output[1:])

    embedder.encoder.layer[0].attention.self.register_forward_hook(attends_to_all)
    assert "would not give" in fault_of(embedder.to(dtype), Dense())
    assert embedder.config._attn_implementation == "sdpa"


def test_positions_that_go_on_through_the_row_are_found(embedder):
    def counts_on(module, args, kwargs):
        first = kwargs["position_ids"][:, :1]
        return args, {**kwargs, "position_ids": first + torch.arange(kwargs["position_ids"].shape[1])[None]}

    def only_in_rows(module, args, kwargs):
        return counts_on(module, args, kwargs) if kwargs.get("position_ids") is not None else None

    embedder.embeddings.register_forward_pre_hook(only_in_rows, with_kwargs=True)
    assert "would not give" in fault_of(embedder, Dense())


def test_a_packed_forward_that_fails_is_said(embedder):
    def refuses_rows(module, args, kwargs):
        if "cu_seqlens" in kwargs:
            raise TypeError("forward() got an unexpected keyword argument 'cu_seqlens'")

    embedder.encoder.register_forward_pre_hook(refuses_rows, with_kwargs=True)
    assert "unexpected keyword" in fault_of(embedder, Dense())

"""Packed attention equals masked attention written out by hand."""

from itertools import product

import pytest
import torch
from transformers import AttentionInterface

from bge_integrations.inference.backends.varlen import NAME, varlen_attention

SEQLENS = [5, 1, 40, 17]


def packed_inputs(kv_heads, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    heads = (4, kv_heads, kv_heads)
    return [torch.randn(1, n, sum(SEQLENS), 16, generator=generator).to(device, dtype) for n in heads]


def run(query, key, value, module=None, **arguments):
    starts = torch.tensor([0, *SEQLENS]).cumsum(0)
    out, weights = varlen_attention(
        module or torch.nn.Identity(), query, key, value, None,
        scaling=0.2, cu_seqlens=starts.to(query.device, torch.int32), max_seqlen=max(SEQLENS), starts=starts,
        **arguments,
    )  # fmt: skip
    assert weights is None
    return out


def by_hand(query, key, value, sliding_window, causal):
    """One softmax over all tokens, with a mask that keeps texts apart."""
    query, key, value = (part[0].double().cpu() for part in (query, key, value))
    key, value = (part.repeat_interleave(len(query) // len(part), dim=0) for part in (key, value))
    text = torch.repeat_interleave(torch.tensor(SEQLENS))
    distance = torch.arange(len(text))[:, None] - torch.arange(len(text))
    allowed = text[:, None] == text
    if causal:
        allowed &= distance >= 0
    if sliding_window:
        allowed &= distance.abs() < sliding_window
    scores = (query @ key.transpose(1, 2) * 0.2).masked_fill(~allowed, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(0, 1)[None]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sliding_window", [None, 1, 3, 17, 100])
def test_equals_masked_attention(kv_heads, causal, sliding_window):
    inputs = packed_inputs(kv_heads)
    out = run(*inputs, sliding_window=sliding_window, is_causal=causal)
    reference = by_hand(*inputs, sliding_window, causal)
    assert out.shape == reference.shape == (1, sum(SEQLENS), 4, 16)
    torch.testing.assert_close(out.double(), reference, atol=1e-6, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.float32, 1e-5)])
def test_equals_masked_attention_on_cuda(dtype, tolerance):
    for kv_heads, causal, sliding_window in product([4, 2, 1], [False, True], [None, 1, 3, 17, 100]):
        inputs = packed_inputs(kv_heads, "cuda", dtype)
        out = run(*inputs, sliding_window=sliding_window, is_causal=causal)
        reference = by_hand(*inputs, sliding_window, causal)
        torch.testing.assert_close(out.double().cpu(), reference, atol=tolerance, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_the_module_decides_where_the_keyword_is_absent(causal):
    inputs = packed_inputs(kv_heads=4)
    module = torch.nn.Identity()
    module.is_causal = causal
    torch.testing.assert_close(run(*inputs, module), run(*inputs, is_causal=causal))
    torch.testing.assert_close(run(*inputs, module, is_causal=not causal), run(*inputs, is_causal=not causal))


def test_softcap_is_refused():
    with pytest.raises(NotImplementedError, match="softcap"):
        run(*packed_inputs(kv_heads=4), softcap=30.0)


def test_unknown_keywords_of_a_model_do_no_harm():
    inputs = packed_inputs(kv_heads=4)
    torch.testing.assert_close(run(*inputs, dropout=0.0, output_attentions=False), run(*inputs))


def test_transformers_knows_it():
    assert AttentionInterface()[NAME] is varlen_attention

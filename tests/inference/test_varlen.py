"""Packed attention equals masked attention written out by hand."""

import inspect
from itertools import product

import pytest
import torch
from transformers import AttentionInterface

from bge_integrations.inference.backends import varlen
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


def reference(query, key, value, ends, scale, window):
    """Attention of (tokens, heads, head size), text by text, within `window` tokens to the left and to the right."""
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    out = []
    for q, k, v in zip(
        *(part.transpose(0, 1).split(ends.diff().tolist(), 1) for part in (query, key, value)), strict=True
    ):
        distance = torch.arange(q.shape[1]) - torch.arange(q.shape[1])[:, None]
        left, right = (side if side >= 0 else len(distance) for side in window)
        scores = (q @ k.transpose(1, 2) * (scale or q.shape[-1] ** -0.5)).masked_fill(
            (distance < -left) | (distance > right), -torch.inf
        )
        out.append(scores.softmax(-1) @ v)
    return torch.cat(out, 1).transpose(0, 1)


def torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert query.shape == key.shape
    return reference(query, key, value, cu_seq_q, None, (-1, 0 if is_causal else -1))


def torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    assert query.shape == key.shape
    return reference(query, key, value, cu_seq_q, scale, window_size)


def torch_2_12(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
    enable_gqa=False,
):  # fmt: skip
    assert enable_gqa or query.shape == key.shape
    return reference(query, key, value, cu_seq_q, scale, window_size)


def operator(
    query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *, scale=None,
    window_size_left=None, window_size_right=None, seqused_k=None, alibi_slopes=None,
):  # fmt: skip
    assert (dropout_p, return_debug_mask) == (0.0, False)
    right = 0 if is_causal else window_size_right
    return reference(query, key, value, cum_seq_q, scale, (window_size_left, right)), None, None, None, None


NEEDS = {
    "an encoder": {},
    "another scale": {"scaling": 0.2},
    "causal": {"causal": True},
    "a window": {"causal": True, "sliding_window": 17},
    "a window wider than the texts": {"sliding_window": 4096},
    "shared key heads": {"kv_heads": 2},
}
PUBLIC = {
    None: set(),
    torch_2_10: {"an encoder", "a window wider than the texts"},
    torch_2_11: NEEDS.keys() - {"shared key heads"},
    torch_2_12: NEEDS.keys(),
}
"""Which needs torch's public function serves, by version; the operator below it serves the others."""


@pytest.mark.parametrize("public", PUBLIC, ids=lambda function: function.__name__ if function else "torch_2_6")
@pytest.mark.parametrize("need", NEEDS)
def test_every_torch_has_a_kernel_for_every_model(public, need, monkeypatch):
    used = []

    def recorded(function):
        def call(*arguments, **named):
            used.append(function)
            inspect.signature(function).bind(*arguments, **named)
            return function(*arguments, **named)

        return call

    found = public and (recorded(public), frozenset(inspect.signature(public).parameters))
    monkeypatch.setattr(varlen, "_public_kernel", lambda: found)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", recorded(operator))
    facts = {"scaling": 16**-0.5, "causal": False, "sliding_window": None, "kv_heads": 4, **NEEDS[need]}
    query, key, value = packed_inputs(facts.pop("kv_heads"))
    starts = torch.tensor([0, *SEQLENS]).cumsum(0)
    rest = (facts["sliding_window"], facts["causal"])
    out = varlen._kernel(query, key, value, facts["scaling"], starts.int(), max(SEQLENS), *rest)
    text_by_text = varlen._attend(query, key, value, starts.int(), max(SEQLENS), starts, facts["scaling"], *rest)
    torch.testing.assert_close(out, text_by_text, atol=1e-6, rtol=0)
    assert used == [public if need in PUBLIC[public] else operator]


def test_this_torch_takes_the_arguments_that_it_is_given():
    newest, known = varlen._public_kernel(), inspect.signature(torch_2_12).parameters
    assert newest[1] >= set(known) - {"return_aux"}
    schema = torch.ops.aten._flash_attention_forward.default._schema
    names = [argument.name for argument in schema.arguments]
    assert names[: len(inspect.signature(operator).parameters)] == list(inspect.signature(operator).parameters)


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

"""Attention over a packed row of tokens: each text attends to itself alone.

It is registered with transformers as an attention function, so that transformers' own model classes run without
padding. Every forward is given the texts' boundaries as `cu_seqlens`; there is no global state.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "bge_varlen"


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - transformers passes it; packed rows need none
    *,
    scaling: float,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    starts: torch.Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute the attention of a packed row.

    Args:
        module: The attention module; its `is_causal` decides where the argument is None.
        query: (1, heads, tokens, head size); key and value are shaped alike, perhaps with fewer heads.
        key: See `query`.
        value: See `query`.
        attention_mask: Unused: there is no padding.
        scaling: The factor on the dot products.
        cu_seqlens: int32 (texts + 1,) on the device: where each text begins.
        max_seqlen: Tokens of the longest text, or more.
        starts: `cu_seqlens` on the host, which saves a copy from the device where there is no kernel.
        sliding_window: Attend at most this many tokens back.
        softcap: Refused, because torch's kernel does not support it.
        is_causal: Attend only to earlier tokens.

    Returns:
        (1, tokens, heads, head size), and None for the weights.

    Raises:
        NotImplementedError: `softcap` was given.
    """
    if softcap is not None:
        raise NotImplementedError("Packed attention does not support softcap; run this model padded.")
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    attend = _opaque if torch.compiler.is_compiling() else _attend
    return attend(query, key, value, cu_seqlens, max_seqlen, starts, scaling, sliding_window, causal), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    starts: torch.Tensor | None,
    scaling: float,
    sliding_window: int | None,
    causal: bool,
) -> torch.Tensor:
    """Compute attention with torch's variable-length kernel where it runs, else text by text."""
    if query.is_cuda and not _refused(str(query.device), str(query.dtype).removeprefix("torch."), query.shape[-1]):
        return _kernel(query, key, value, scaling, cu_seqlens, max_seqlen, sliding_window, causal)
    starts = cu_seqlens if starts is None else starts
    if len(starts) == 2:
        return _text(query, key, value, scaling, sliding_window, causal).transpose(1, 2).contiguous()
    lengths = starts.diff().tolist()
    texts = zip(
        torch.split(query, lengths, 2), torch.split(key, lengths, 2), torch.split(value, lengths, 2), strict=True
    )
    attended = [_text(*text, scaling, sliding_window, causal) for text in texts]
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous()


_opaque = torch.library.custom_op("bge::varlen_attention", _attend, mutates_args=())
"""The attention as one step for torch.compile, which would otherwise compile anew for every number of texts."""


@_opaque.register_fake
def _shape(query: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)


def kernel_refusal(device: str, dtype: str, head_size: int) -> str:
    """Return why no variable-length kernel of torch can run a model; "" if one can."""
    if dtype == "float32":
        return "torch's variable-length kernel has no float32"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "torch's variable-length kernel needs compute capability 8.0"
    if head_size > 256 or head_size % 8:
        return f"torch's variable-length kernel has no head size {head_size}"
    if not torch.backends.cuda.is_flash_attention_available():
        return f"torch {torch.__version__} was built without flash attention"
    return ""


_refused = functools.cache(kernel_refusal)


@functools.cache
def _public_kernel() -> tuple[Callable[..., Any], frozenset[str]] | None:
    """Return torch's own function, from torch 2.10 on, and the names of its arguments; None where it has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def _kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    sliding_window: int | None,
    causal: bool,
) -> torch.Tensor:
    """Compute attention by torch's public function if that takes what this model needs, else by the operator below it.

    The public one knows scale and window since torch 2.11, and key heads that several query heads share since 2.12.
    """
    q, k, v = (part.squeeze(0).transpose(0, 1) for part in (query, key, value))
    ends = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    back = sliding_window - 1 if sliding_window and sliding_window < max_seqlen else -1
    window = (back, 0 if causal else back)
    needed: dict[str, Any] = {}
    if not math.isclose(scaling, q.shape[-1] ** -0.5):
        needed["scale"] = scaling
    if window != (-1, -1):
        needed["window_size"] = window
    if k.shape[1] != q.shape[1]:
        needed["enable_gqa"] = True
    public = _public_kernel()
    if public and public[1].issuperset(needed):
        out = public[0](q, k, v, *ends, **needed)
    else:
        operator = torch.ops.aten._flash_attention_forward  # noqa: SLF001 - what torch's own function calls
        out = operator(
            q, k, v, *ends, 0.0, causal, False, scale=scaling, window_size_left=window[0], window_size_right=window[1]
        )[0]
    return cast("torch.Tensor", out).unsqueeze(0)


def _text(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    sliding_window: int | None,
    causal: bool,
) -> torch.Tensor:
    """Compute the attention of one text with torch's own function."""
    length = query.shape[2]
    near = sliding_window is not None and sliding_window < length
    mask = _window_mask(length, sliding_window, causal, query.device) if near else None
    return scaled_dot_product_attention(
        query, key, value,
        attn_mask=mask, is_causal=causal and mask is None, scale=scaling, enable_gqa=key.shape[1] != query.shape[1],
    )  # fmt: skip


def _window_mask(length: int, sliding_window: int | None, causal: bool, device: torch.device) -> torch.Tensor:
    position = torch.arange(length, device=device)
    distance = position[:, None] - position
    near = distance.abs() < (sliding_window or length)
    return near & (distance >= 0) if causal else near


AttentionInterface.register(NAME, varlen_attention)

"""Transformer Engine's Triton kernels for experts' tokens (transformer_engine/pytorch/triton/permutation.py, v2.20).

`row_id_map` [tokens, 2 experts + 1] is the kernels' own: a token's places among the permuted ones, its experts, and
how many there are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def make_row_id_map(routing_map: Tensor, num_tokens: int, num_experts: int) -> Tensor:
    """Places sorted by expert, then by token."""
    chosen = routing_map.bool()
    places = chosen.t().flatten().cumsum(0).view(num_experts, num_tokens).t() - 1
    found = torch.full((num_tokens, 2 * num_experts + 1), -1, dtype=torch.int32)
    # the kernel sorts a token's places in descending order
    order = torch.where(chosen, places, -1).argsort(dim=1, descending=True, stable=True)
    counts = chosen.sum(1)
    listed = torch.arange(num_experts).expand(num_tokens, -1) < counts.unsqueeze(1)
    found[:, :num_experts] = torch.where(listed, torch.where(chosen, places, -1).gather(1, order), -1).int()
    found[:, num_experts:-1] = torch.where(listed, order, -1).int()
    found[:, -1] = counts.int()
    return found


def _pairs(row_id_map: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token, expert and place of every routed pair."""
    places, experts = row_id_map[:, :num_experts], row_id_map[:, num_experts:-1]
    token, column = (torch.arange(num_experts) < row_id_map[:, -1:]).nonzero(as_tuple=True)
    return token, experts[token, column].long(), places[token, column].long()


def _check_not_padded(offsets: Tensor | None) -> None:
    if offsets is not None:
        raise NotImplementedError("permutation that pads each expert's tokens")


def permute_with_mask_map(
    inp: Tensor,
    row_id_map: Tensor,
    probs: Tensor | None,
    scale: Tensor | None,
    pad_offsets: Tensor | None,
    num_tokens: int,
    num_experts: int,
    num_out_tokens: int,
    hidden_size: int,
    scale_hidden_dim: int,
) -> tuple[Tensor, None, Tensor | None]:
    """Every token to all its places, and its probabilities."""
    if scale is not None:
        raise NotImplementedError("permutation of quantised tokens")
    _check_not_padded(pad_offsets)
    token, expert, place = _pairs(row_id_map, num_experts)
    out = inp.new_zeros(num_out_tokens, hidden_size)
    out[place] = inp[token]
    if probs is None:
        return out, None, None
    permuted = probs.new_zeros(num_out_tokens)
    permuted[place] = probs[token, expert] if probs.dim() == 2 else probs[token]
    return out, None, permuted


def unpermute_with_mask_map(
    inp: Tensor,
    row_id_map: Tensor,
    merging_probs: Tensor | None,
    permuted_probs: Tensor | None,
    pad_offsets: Tensor | None,
    num_tokens: int,
    num_experts: int,
    hidden_size: int,
) -> tuple[Tensor, Tensor | None]:
    """The sum over a token's places, in FP32, rounded once; weighted where there are probabilities."""
    _check_not_padded(pad_offsets)
    token, expert, place = _pairs(row_id_map, num_experts)
    rows = inp[place].float()
    if merging_probs is not None:
        rows = rows * merging_probs[token, expert].float().unsqueeze(1)
    out = torch.zeros(num_tokens, hidden_size).index_add_(0, token, rows).to(inp.dtype)
    if permuted_probs is None:
        return out, None
    unpermuted = permuted_probs.new_zeros(num_tokens, num_experts)
    unpermuted[token, expert] = permuted_probs[place]
    return out, unpermuted


def unpermute_with_mask_map_bwd_with_merging_probs(
    fwd_output_grad: Tensor,
    row_id_map: Tensor,
    fwd_input: Tensor,
    merging_probs: Tensor,
    pad_offsets: Tensor | None,
    num_tokens: int,
    num_experts: int,
    num_out_tokens: int,
    hidden_size: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of the rows and of the probabilities."""
    _check_not_padded(pad_offsets)
    token, expert, place = _pairs(row_id_map, num_experts)
    gradient = fwd_output_grad[token].float()
    rows = fwd_output_grad.new_zeros(num_out_tokens, hidden_size)
    rows[place] = (gradient * merging_probs[token, expert].float().unsqueeze(1)).to(rows.dtype)
    probs = merging_probs.new_zeros(num_tokens, num_experts)
    probs[token, expert] = (gradient * fwd_input[place].float()).sum(1).to(probs.dtype)
    return rows, probs


def make_chunk_sort_map(split_sizes: Tensor, sorted_indices: Tensor, num_tokens: int, num_splits: int) -> Tensor:
    """Where each row goes when runs of rows change their order."""
    sizes, order = split_sizes.long(), sorted_indices.long()
    starts = torch.zeros(num_splits, dtype=torch.long)
    starts[order] = sizes[order].cumsum(0) - sizes[order]
    run = torch.arange(num_splits).repeat_interleave(sizes)
    within = torch.arange(num_tokens) - (sizes.cumsum(0) - sizes)[run]
    return (starts[run] + within).int()


def sort_chunks_by_map(
    inp: Tensor,
    row_id_map: Tensor,
    probs: Tensor | None,
    num_tokens: int,
    hidden_size: int,
    is_forward: bool,
) -> tuple[Tensor, Tensor | None]:
    """Rows to their places, or back from them."""

    def move(values: Tensor) -> Tensor:
        if not is_forward:
            return values[row_id_map.long()]
        out = torch.empty_like(values)
        out[row_id_map.long()] = values
        return out

    return move(inp), None if probs is None else move(probs)


FUNCTIONS: dict[str, Any] = {
    one.__name__: one
    for one in (
        make_row_id_map,
        permute_with_mask_map,
        unpermute_with_mask_map,
        unpermute_with_mask_map_bwd_with_merging_probs,
        make_chunk_sort_map,
        sort_chunks_by_map,
    )
}

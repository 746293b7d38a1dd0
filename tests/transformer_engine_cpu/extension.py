"""What Transformer Engine's compiled module (`transformer_engine_torch`, v2.20) does in training, in plain PyTorch.

Signatures are those of transformer_engine/pytorch/csrc/extensions/pybind.cpp. What is computed follows the kernels:
each function in FP32 inside and rounded once, quantised tensors in the bytes and shapes that the Python package keeps
them in, but for scales, which are not swizzled. Sums of products run in FP64 (a result does not depend on their
order), and are rounded to FP32 before scales of tensors multiply them. A name that is not here raises
NotImplementedError when it is called: no function passes for another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from transformer_engine_cpu import formats


class DType(IntEnum):
    """Transformer Engine's types (transformer_engine.h), those that Python sees."""

    kByte = 0
    kInt32 = 2
    kFloat32 = 4
    kFloat16 = 5
    kBFloat16 = 6
    kFloat8E4M3 = 7
    kFloat8E5M2 = 8
    kFloat4E2M1 = 10


_TORCH = {
    DType.kByte: torch.uint8,
    DType.kInt32: torch.int32,
    DType.kFloat32: torch.float32,
    DType.kFloat16: torch.float16,
    DType.kBFloat16: torch.bfloat16,
    DType.kFloat8E4M3: torch.float8_e4m3fn,
    DType.kFloat8E5M2: torch.float8_e5m2,
}

_FORWARD = [f"GEMM{gemm}_{kind}" for gemm in (1, 2, 3) for kind in ("INPUT", "WEIGHT", "OUTPUT")]
_BACKWARD = [f"GRAD_{kind}{gemm}" for gemm in (1, 2, 3) for kind in ("OUTPUT", "INPUT")]
FP8FwdTensors = IntEnum("FP8FwdTensors", _FORWARD, start=0)
FP8BwdTensors = IntEnum("FP8BwdTensors", _BACKWARD, start=0)
CommOverlapType = IntEnum("CommOverlapType", ["RS", "AG"], start=0)


class NVTE_Fused_Attn_Backend(IntEnum):
    """What cuDNN can fuse (fused_attn.h)."""

    NVTE_No_Backend = -1
    NVTE_F16_arbitrary_seqlen = 1
    NVTE_FP8 = 2


class NVTE_QKV_Format(IntEnum):
    """The order of a tensor's axes (fused_attn.h)."""

    NVTE_SBHD = 0
    NVTE_BSHD = 1
    NVTE_THD = 2
    NVTE_BSHD_2SBHD = 3
    NVTE_SBHD_2BSHD = 4
    NVTE_THD_2BSHD = 5
    NVTE_THD_2SBHD = 6
    NVTE_BHSD = 7
    NVTE_QKV_Format_NOT_SET = 8


NVTERoutingMapFormat = IntEnum("NVTERoutingMapFormat", ["BYTEMAP", "BITMAP_U8"], start=0)
NVTEQBHistogramMode = IntEnum("NVTEQBHistogramMode", ["TWO_KERNEL", "FUSED_ATOMIC"], start=0)


class _Names(type):
    """An enumeration whose members are their names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Enumeration(metaclass=_Names):
    pass


class _Unused:
    """A class that annotations name and nothing here makes."""


NVTE_QKV_Layout = NVTE_Bias_Type = NVTE_Mask_Type = NVTE_Softmax_Type = NVTEScalingMode = _Enumeration
CommOverlapAlgo = _Enumeration
CommOverlap = CommOverlapP2P = CommOverlapHelper = CommOverlapCore = FP8TensorMeta = _Unused


def get_cublasLt_version() -> int:
    """13.1.1, as the GPU image's."""
    return 130101


def get_cudnn_version() -> int:
    """9.24.0, as the GPU image's."""
    return 92400


def get_num_cublas_streams() -> int:
    """As compiled."""
    return 4


def get_fused_attn_backend(*_: Any) -> tuple[NVTE_Fused_Attn_Backend, str]:
    """None: what cuDNN fuses is not computed here, and Transformer Engine's unfused attention is."""
    return NVTE_Fused_Attn_Backend.NVTE_No_Backend, "a CPU has no fused attention"


# --- quantised tensors ------------------------------------------------------------------------------------------------


def create_empty_quantized_tensor(
    quantizer: Any, shape: Sequence[int], dtype: torch.dtype, device: torch.device, pin_memory: bool
) -> Any:
    """A tensor of the quantiser's kind, not filled (quantizer.cpp, `create_tensor`).

    Its parts are those that the quantiser tells torch.compile of; one of delayed scaling tells of none, and has those
    of current scaling. No scales are swizzled.
    """
    from transformer_engine.pytorch import Float8CurrentScalingQuantizer  # type: ignore[import-not-found]

    kind = Float8CurrentScalingQuantizer if type(quantizer).__name__ == "Float8Quantizer" else type(quantizer)
    described = kind.storage_metadata(quantizer, dtype)
    if "with_gemm_swizzled_scales" in described["nontensor_kwargs"]:
        described["nontensor_kwargs"]["with_gemm_swizzled_scales"] = False
    sizes = kind.inner_tensor_specs(quantizer, tuple(shape))
    if kind.__name__ == "NVFP4Quantizer" and "_columnwise_data" in sizes:  # two codes a byte: of a matrix, says the C++
        matrix = (math.prod(shape[:-1]), shape[-1])
        sizes["_columnwise_data"] = kind.inner_tensor_specs(quantizer, matrix)["_columnwise_data"]
    parts = {name: torch.empty(size, dtype=of, device=device) for name, (size, of) in sizes.items()}
    context = described | {"is_tensor": not quantizer.internal, "requires_grad": False}
    return described["cls"].__tensor_unflatten__(parts, context, tuple(shape), None)


def quantize(tensor: Tensor, quantizer: Any, output: Any = None, noop: Tensor | None = None) -> Any:
    """A tensor in the quantiser's format, by row and by column as it says; into `output` where that is given."""
    tensor = tensor.detach().contiguous()
    if quantizer is None:
        return tensor
    into = quantizer.make_empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) if output is None else output
    if noop is not None and noop.item():
        return into
    flat = tensor.reshape(-1, tensor.shape[-1])
    _QUANTISE[type(quantizer).__name__](flat, quantizer, into)
    return into


def _quantise_delayed(flat: Tensor, quantizer: Any, into: Any) -> None:
    if flat.numel():
        quantizer.amax.copy_(torch.maximum(quantizer.amax, formats.amax(flat)))  # atomicMax: it adds to what there is
        _quantise_whole(flat, quantizer, into, quantizer.scale)
    else:
        into._scale_inv.copy_(1.0 / quantizer.scale)


def _quantise_tensor(flat: Tensor, quantizer: Any, into: Any) -> None:
    if not flat.numel():
        return
    largest = formats.amax(flat).view(1)
    if quantizer.with_amax_reduction:
        group = quantizer._canonicalized_amax_reduction_group()
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=group)
    largest = largest.clamp(min=quantizer.amax_epsilon)
    scale = formats.scale_of(largest, _TORCH[quantizer.dtype], power_of_two=quantizer.force_pow_2_scales)
    _quantise_whole(flat, quantizer, into, scale)


def _quantise_whole(flat: Tensor, quantizer: Any, into: Any, scale: Tensor) -> None:
    """From compute capability 10 on products read rows and columns from the same copy."""
    from transformer_engine.pytorch.utils import is_non_tn_fp8_gemm_supported  # type: ignore[import-not-found]

    codes, one_copy = formats.to_fp8(flat.float() * scale, _TORCH[quantizer.dtype]), is_non_tn_fp8_gemm_supported()
    if quantizer.rowwise_usage or one_copy or into._data is not None:
        into._data = codes.view(into.size())
    if quantizer.columnwise_usage and not one_copy:
        into._transpose, into._transpose_invalid = codes.t().contiguous(), False
    into._scale_inv.copy_(1.0 / scale)


def _quantise_blocks(flat: Tensor, quantizer: Any, into: Any) -> None:
    across = quantizer.block_len if quantizer.block_scaling_dim == 2 else 1
    for used, values, data, scales in (
        (quantizer.rowwise_usage, flat, into._rowwise_data, into._rowwise_scale_inv),
        (quantizer.columnwise_usage, flat.t().contiguous(), into._columnwise_data, into._columnwise_scale_inv),
    ):
        if used and flat.numel():
            codes, inverse = formats.blocks_to_fp8(
                values,
                _TORCH[quantizer.dtype],
                (across, quantizer.block_len),
                power_of_two=quantizer.force_pow_2_scales,
            )
            data.copy_(codes.reshape(data.shape))
            inverse = inverse.t() if across == 1 else inverse
            scales.zero_()[: inverse.shape[0], : inverse.shape[1]] = inverse


def _quantise_mx(flat: Tensor, quantizer: Any, into: Any) -> None:
    if quantizer.with_2d_quantization:
        raise NotImplementedError("MXFP8 with one scale for 32 x 32 values")
    for used, block, data, scales in (
        (quantizer.rowwise_usage, (1, 32), into._rowwise_data, into._rowwise_scale_inv),
        (quantizer.columnwise_usage, (32, 1), into._columnwise_data, into._columnwise_scale_inv),
    ):
        if used and flat.numel():
            codes, exponents = formats.blocks_to_mxfp8(flat, _TORCH[quantizer.dtype], block)
            data.copy_(codes.view(data.shape))
            scales.zero_()[: exponents.shape[0], : exponents.shape[1]] = exponents


def _quantise_nvfp4(flat: Tensor, quantizer: Any, into: Any) -> None:
    if quantizer.row_scaled_nvfp4 or quantizer.nvfp4_use_4over6:
        raise NotImplementedError("NVFP4 with a scale of each row, and with largest codes of 4 or 6")
    if not flat.numel():
        return
    turned = flat.t().contiguous()
    if quantizer.with_rht:  # of what is summed by the weight gradient alone; in BF16, as the kernel writes it
        turned = (turned.view(-1, 16).float() @ quantizer.rht_matrix.float()).to(flat.dtype).view(turned.shape)
    across = 16 if quantizer.with_2d_quantization else 1
    for used, values, data, scales, largest in (
        (quantizer.rowwise_usage, flat, into._rowwise_data, into._rowwise_scale_inv, into._amax_rowwise),
        (quantizer.columnwise_usage, turned, into._columnwise_data, into._columnwise_scale_inv, into._amax_columnwise),
    ):
        if not used:
            continue
        largest.copy_(formats.amax(values))
        if quantizer.with_amax_reduction:
            group = quantizer._canonicalized_amax_reduction_group()
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=group)
        codes, found = formats.blocks_to_nvfp4(values, largest, (across, 16), stochastic=quantizer.stochastic_rounding)
        data.copy_(codes.view(data.shape))
        scales.zero_()[: found.shape[0], : found.shape[1]] = found


_QUANTISE = {
    "Float8Quantizer": _quantise_delayed,
    "Float8CurrentScalingQuantizer": _quantise_tensor,
    "Float8BlockQuantizer": _quantise_blocks,
    "MXFP8Quantizer": _quantise_mx,
    "NVFP4Quantizer": _quantise_nvfp4,
}


def split_quantize(
    tensor: Tensor, split_sections: Sequence[int], quantizer_list: Sequence[Any], disable_bulk_allocation: bool = False
) -> list[Any]:
    """Each run of rows by its own quantiser."""
    return [quantize(part, one) for part, one in zip(tensor.split(list(split_sections)), quantizer_list, strict=True)]


def multi_tensor_quantize(tensor_list: Sequence[Tensor], quantizer_list: Sequence[Any]) -> list[Any]:
    """Each tensor by its own quantiser."""
    return [quantize(tensor, one) for tensor, one in zip(tensor_list, quantizer_list, strict=True)]


def bgrad_quantize(input: Tensor, quantizer: Any) -> tuple[Tensor, Any]:
    """The sum over rows, and the tensor quantised."""
    return input.reshape(-1, input.shape[-1]).float().sum(0).to(input.dtype), quantize(input, quantizer)


def dequantize(input: Any, otype: DType) -> Tensor:
    """What a quantised tensor's rows hold."""
    values = _values(input, by_row=True).float() * _factor(input, by_row=True)
    return values.to(_TORCH[otype]).view(input.size())


def fp8_transpose(input: Tensor, dtype: DType, *, out: Tensor | None) -> Tensor:
    """Bytes [..., columns] as [columns, ...]."""
    turned = input.reshape(-1, input.shape[-1]).t().contiguous().view(input.shape[-1], *input.shape[:-1])
    return turned if out is None else out.copy_(turned)


def swap_first_dims(tensor: Tensor, *, out: Tensor | None) -> Tensor:
    """[a, b, ...] as [b, a, ...]."""
    turned = tensor.transpose(0, 1).contiguous()
    return turned if out is None else out.copy_(turned)


def swizzle_scales_for_gemm_(*_: Any) -> None:
    """Nothing: scales stay as they are."""


def compute_amax(input: Tensor, amax: Tensor) -> None:
    """The largest magnitude into `amax`."""
    amax.copy_(formats.amax(input))


def fused_amax_and_scale_update_after_reduction(
    amax_reduction_buffer: Tensor,
    amax_histories: Sequence[Tensor],
    scales: Sequence[Tensor],
    amax_compute_algo: str,
    fp8_dtype: DType,
    margin: float,
) -> None:
    """Roll histories [length, scales] and set scales (delayed_scaling.cu, `kernel_bulk`).

    A history whose newest amax is 0 stays as it is, and its scale too.
    """
    largest_code, at = formats.LARGEST[_TORCH[fp8_dtype]] * 2.0**-margin, 0
    for history, scale in zip(amax_histories, scales, strict=True):
        reduced = amax_reduction_buffer[at : at + len(scale)]
        at += len(scale)
        newest = torch.where(reduced != 0, reduced, history[0])
        rolled = torch.cat([history[1:], newest.unsqueeze(0)])
        most = formats.amax(rolled, (0,)).squeeze(0) if amax_compute_algo == "max" else newest
        most = torch.where(newest != 0, most, 0.0)
        rolled[0] = 0
        history.copy_(torch.where(newest != 0, rolled, history))
        new = formats.divide(largest_code, most).clamp(max=torch.finfo(torch.float32).max)
        scale.copy_(torch.where(most.isfinite() & (most > 0), new, scale))


# --- products ---------------------------------------------------------------------------------------------------------


def _values(tensor: Any, *, by_row: bool) -> Tensor:
    """The numbers of a matrix, in FP64, from the copy whose scales lie along its rows or its columns.

    Without the scale of a whole tensor (`_factor`), which multiplies the sum.
    """
    kind = type(tensor).__name__.removesuffix("Storage")
    if kind == "Float8Tensor":
        if tensor._data is not None:
            codes = tensor._data.reshape(-1, tensor._data.shape[-1])
        else:
            codes = tensor._transpose.reshape(tensor._transpose.shape[0], -1).t().contiguous()
        return formats.from_fp8(codes, _TORCH[tensor._fp8_dtype]).double()
    if kind == "Float8BlockwiseQTensor":
        return _block_values(tensor, by_row)
    if kind == "MXFP8Tensor":
        codes = tensor._rowwise_data if by_row else tensor._columnwise_data
        values = formats.from_fp8(codes.reshape(-1, codes.shape[-1]), _TORCH[tensor._fp8_dtype]).double()
        scales = formats.from_e8m0(tensor._rowwise_scale_inv if by_row else tensor._columnwise_scale_inv)
        return values * _spread(scales, (1, 32) if by_row else (32, 1), values)
    if kind == "NVFP4Tensor":
        codes = tensor._rowwise_data if by_row else tensor._columnwise_data
        values = formats.from_fp4(codes.reshape(-1, codes.shape[-1])).double()
        scales = (tensor._rowwise_scale_inv if by_row else tensor._columnwise_scale_inv).view(torch.float8_e4m3fn)
        values = values * _spread(scales.double(), (1, 16), values)
        return values if by_row else values.t()
    return tensor.reshape(-1, tensor.shape[-1]).double()


def _spread(scales: Tensor, block: tuple[int, int], like: Tensor) -> Tensor:
    whole = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return whole[: like.shape[0], : like.shape[1]]


def _block_values(tensor: Any, by_row: bool) -> Tensor:
    codes = tensor._rowwise_data if by_row else tensor._columnwise_data
    scales = (tensor._rowwise_scale_inv if by_row else tensor._columnwise_scale_inv).double()
    codes = codes.reshape(-1, codes.shape[-1]) if by_row else codes.reshape(codes.shape[0], -1)
    values = formats.from_fp8(codes, _TORCH[tensor._fp8_dtype]).double()
    spread = _spread(scales, (128, 128), values) if tensor._is_2D_scaled else _spread(scales.t(), (1, 128), values)
    return values * spread if by_row else (values * spread).t()


def _factor(tensor: Any, *, by_row: bool) -> Tensor | float:
    """What a sum over a matrix is multiplied by: 1 / the scale of a whole tensor."""
    kind = type(tensor).__name__.removesuffix("Storage")
    if kind == "Float8Tensor":
        return tensor._scale_inv
    if kind == "NVFP4Tensor":
        return (tensor._amax_rowwise if by_row else tensor._amax_columnwise) / (6.0 * 448.0)
    return 1.0


def _product(a: Any, turn_a: bool, b: Any, turn_b: bool) -> Tensor:
    """op(b) op(a) in FP32, as cuBLAS has it of matrices in columns: op(a) is a's transpose where it is turned."""
    left, right = _values(b, by_row=not turn_b), _values(a, by_row=turn_a)
    left, right = left.t() if turn_b else left, right.t() if turn_a else right
    return (left @ right).float() * (_factor(a, by_row=turn_a) * _factor(b, by_row=not turn_b))


def generic_gemm(
    A: Any,
    transA: bool,
    B: Any,
    transB: bool,
    D: Tensor | None,
    quantizer: Any,
    output_dtype: DType | None,
    bias: Tensor | None,
    bias_type: DType,
    gelu: bool,
    gelu_in: Tensor | None,
    grad: bool,
    workspace: Tensor,
    workspace_size: int,
    accumulate: bool,
    use_split_accumulator: bool,
    comm_overlap: Any = None,
    comm_type: Any = None,
    extra_output: Any = None,
    bulk_overlap: bool = False,
    alpha: float = 1.0,
    beta: float | None = None,
) -> tuple[Any, Tensor | None, None, Any]:
    """One product, added to D where it accumulates, with the bias, or with the bias's gradient (`grad`)."""
    if gelu or comm_overlap is not None:
        raise NotImplementedError("GELU in a product's epilogue, and products that overlap with communication")
    product = _product(A, transA, B, transB) * alpha
    bias_grad = None
    if bias is not None and bias.numel():
        if grad:
            bias_grad = _values(B, by_row=not transB).sum(0).to(bias.dtype)
        else:
            product = product + bias.float()
    if D is None:
        dtype = _TORCH[output_dtype] if output_dtype is not None else A.dtype
        first = B.size()[:-1] if not transB else product.shape[:1]
        D = product.to(dtype).view(*first, product.shape[-1])
        return (D if quantizer is None else quantize(D, quantizer)), bias_grad, None, extra_output
    total = product + D.float().view(product.shape) * (1.0 if beta is None else beta) if accumulate else product
    D.copy_(total.view(D.shape))
    return D, bias_grad, None, extra_output


def te_general_grouped_gemm(
    A: Sequence[Any],
    transA: bool,
    B: Sequence[Any],
    transB: bool,
    D: Sequence[Tensor],
    D_type: DType,
    m_splits: Sequence[int],
    bias: Sequence[Tensor],
    bias_type: DType,
    single_output: bool,
    pre_gelu_out: Sequence[Tensor],
    grad: bool,
    *rest: Any,
) -> Sequence[Tensor]:
    """A product of each expert; one that has no tokens leaves what accumulates as it is, and zeros else."""
    _, _, accumulate, *_ = rest
    outs = D[0].split(list(m_splits)) if single_output else D
    for index, (a, b, out) in enumerate(zip(A, B, outs, strict=True)):
        if not math.prod(a.size()) or not math.prod(b.size()):
            if not accumulate:
                out.zero_()
            if grad and bias[index].numel():
                bias[index].zero_()
            continue
        product = _product(a, transA, b, transB)
        if bias[index].numel():
            if grad:
                bias[index].copy_(_values(b, by_row=not transB).sum(0))
            else:
                product = product + bias[index].float()
        out.copy_(product + out.float() if accumulate else product)
    return bias


# --- norms, activations, softmax, rotary embedding --------------------------------------------------------------------


def rmsnorm_fwd(
    input: Tensor,
    weight: Tensor,
    eps: float,
    ln_out: Any,
    quantizer: Any,
    otype: DType,
    sm_margin: int,
    zero_centered_gamma: bool,
) -> tuple[Any, None, Tensor]:
    """x / sqrt(mean(x^2) + eps) * weight, quantised where asked, and the factor of each row."""
    x = input.detach().float().reshape(-1, input.shape[-1])
    factor = (x.square().mean(-1) + eps).rsqrt()
    gamma = weight.detach().float() + float(zero_centered_gamma)
    out = (x * factor.unsqueeze(-1) * gamma).to(_TORCH[otype]).view(input.shape)
    if quantizer is not None:
        return quantize(out, quantizer, ln_out), None, factor
    return (out if ln_out is None else ln_out.copy_(out)), None, factor


def rmsnorm_bwd(
    dz: Tensor,
    x: Tensor,
    rsigma: Tensor,
    gamma: Tensor,
    sm_margin: int,
    zero_centered_gamma: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the input and of the weight."""
    gradient, values = dz.float().reshape(-1, dz.shape[-1]), x.float().reshape(-1, x.shape[-1])
    normed = values * rsigma.unsqueeze(-1)
    scaled = gradient * (gamma.float() + float(zero_centered_gamma))
    to_x = (scaled - normed * (scaled * normed).mean(-1, keepdim=True)) * rsigma.unsqueeze(-1)
    return to_x.to(x.dtype).view(x.shape), (gradient * normed).sum(0).to(gamma.dtype)


def swiglu(input: Tensor, quantizer: Any) -> Any:
    """silu(first half) * second half."""
    gate, up = input.detach().float().chunk(2, -1)
    return quantize((torch.nn.functional.silu(gate) * up).to(input.dtype), quantizer)


def dswiglu(grad: Tensor, fwd_input: Tensor, quantizer: Any) -> Any:
    """Its gradient."""
    gradient, (gate, up) = grad.float(), fwd_input.float().chunk(2, -1)
    sigmoid = gate.sigmoid()
    to_gate = gradient * up * sigmoid * (1 + gate * (1 - sigmoid))
    return quantize(torch.cat([to_gate, gradient * gate * sigmoid], -1).to(fwd_input.dtype), quantizer)


def _softmax(scores: Tensor, hidden: Tensor | None, scale: float) -> Tensor:
    scaled = scores.float() * scale
    if hidden is not None:
        scaled = scaled.masked_fill(hidden.bool(), -10000.0)
    return scaled.softmax(-1).to(scores.dtype)


def _softmax_gradient(gradient: Tensor, weights: Tensor, scale: float) -> Tensor:
    both = gradient.float() * weights.float()
    return ((both - weights.float() * both.sum(-1, keepdim=True)) * scale).to(gradient.dtype)


def scaled_softmax_forward(input: Tensor, scale_factor: float) -> Tensor:
    """Over the last axis."""
    return _softmax(input, None, scale_factor)


def scaled_masked_softmax_forward(input: Tensor, mask: Tensor, scale_factor: float) -> Tensor:
    """Over the last axis, without what the mask names."""
    return _softmax(input, mask, scale_factor)


def _later(rows: int, columns: int) -> Tensor:
    return torch.ones(rows, columns, dtype=torch.bool).triu(columns - rows + 1)


def scaled_upper_triang_masked_softmax_forward(input: Tensor, scale_factor: float) -> Tensor:
    """Over this column and the earlier ones; later ones are 0."""
    later = _later(*input.shape[-2:])
    return _softmax(input, later, scale_factor).masked_fill(later, 0.0)


scaled_aligned_causal_masked_softmax_forward = scaled_upper_triang_masked_softmax_forward


def scaled_softmax_backward(output_grads: Tensor, softmax_results: Tensor, scale_factor: float) -> Tensor:
    """The gradient of any of them."""
    return _softmax_gradient(output_grads, softmax_results, scale_factor)


scaled_masked_softmax_backward = scaled_upper_triang_masked_softmax_backward = scaled_softmax_backward
scaled_aligned_causal_masked_softmax_backward = scaled_softmax_backward


def _rotate(x: Tensor, freqs: Tensor, interleaved: bool, *, back: bool) -> Tensor:
    """[sequence, batch, heads, size] by angles [sequence, 1, 1, size of the part that turns]."""
    size = freqs.shape[-1]
    turning, rest = x[..., :size].float(), x[..., size:]
    cosine, sine = freqs[: x.shape[0]].cos(), freqs[: x.shape[0]].sin()
    if back:  # the transpose of the rotation
        turning_sine = turning * sine
        turned = turning * cosine + _half_turned(turning_sine, interleaved, back=True)
    else:
        turned = turning * cosine + _half_turned(turning, interleaved, back=False) * sine
    return torch.cat([turned.to(x.dtype), rest], -1)


def _half_turned(x: Tensor, interleaved: bool, *, back: bool) -> Tensor:
    """(-second, first), or (second, -first) going back."""
    sign = -1.0 if back else 1.0
    if interleaved:
        first, second = x[..., 0::2], x[..., 1::2]
        return torch.stack([-sign * second, sign * first], -1).flatten(-2)
    first, second = x.chunk(2, -1)
    return torch.cat([-sign * second, sign * first], -1)


def fused_rope_forward(
    input: Tensor,
    freqs: Tensor,
    start_positions: Tensor | None,
    qkv_format: NVTE_QKV_Format,
    interleaved: bool,
    cu_seqlens: Tensor | None,
    cp_size: int,
    cp_rank: int,
) -> Tensor:
    """Rotary embedding; angles and products in FP32."""
    _check_rope(start_positions, qkv_format, cu_seqlens, cp_size, cp_rank)
    return _rotate(input, freqs, interleaved, back=False)


def fused_rope_backward(
    output_grads: Tensor,
    freqs: Tensor,
    start_positions: Tensor | None,
    qkv_format: NVTE_QKV_Format,
    interleaved: bool,
    cu_seqlens: Tensor | None,
    cp_size: int,
    cp_rank: int,
) -> Tensor:
    """Its gradient."""
    _check_rope(start_positions, qkv_format, cu_seqlens, cp_size, cp_rank)
    return _rotate(output_grads, freqs, interleaved, back=True)


def _check_rope(start: Any, layout: NVTE_QKV_Format, cu_seqlens: Any, cp_size: int, cp_rank: int) -> None:
    if start is not None or cu_seqlens is not None or cp_size > 1 or cp_rank or layout != NVTE_QKV_Format.NVTE_SBHD:
        raise NotImplementedError("rotary embedding of anything but whole sequences, [sequence, batch, heads, size]")


# --- experts' tokens, optimizers --------------------------------------------------------------------------------------


def fused_multi_row_padding(input: Tensor, output: Tensor, rows: Sequence[int], padded: Sequence[int]) -> None:
    """Each expert's rows with zeros after them."""
    for part, out, count in zip(input.split(list(rows)), output.split(list(padded)), rows, strict=True):
        out[:count] = part
        out[count:] = 0


def fused_multi_row_unpadding(input: Tensor, output: Tensor, padded: Sequence[int], rows: Sequence[int]) -> None:
    """Each expert's rows without those after them."""
    for part, out, count in zip(input.split(list(padded)), output.split(list(rows)), rows, strict=True):
        out.copy_(part[:count])


def multi_tensor_scale(chunk_size: int, noop: Tensor, lists: Sequence[Sequence[Tensor]], scale: float | Tensor) -> None:
    """Second list = first list * scale; the flag is set where that is no number."""
    for source, target in zip(*lists, strict=True):
        scaled = source.float() * scale
        target.copy_(scaled)
        if not scaled.isfinite().all():
            noop.fill_(1)


multi_tensor_scale_tensor = multi_tensor_scale


def multi_tensor_l2norm(
    chunk_size: int,
    noop: Tensor,
    lists: Sequence[Sequence[Tensor]],
    per_tensor: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """The norm of all numbers of the tensors, and of each tensor."""
    norms = torch.stack([tensor.float().norm() for tensor in lists[0]])
    return norms.norm().view(1), norms if per_tensor else torch.zeros(0)


def multi_tensor_adam(
    chunk_size: int,
    noop: Tensor,
    lists: Sequence[Sequence[Tensor]],
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
    mode: int,
    bias_correction: int,
    weight_decay: float,
) -> None:
    """Adam of gradients, parameters, means and mean squares; mode 1 decays weights apart from the gradient (AdamW)."""
    first, second = (1 - beta1**step, 1 - beta2**step) if bias_correction else (1.0, 1.0)
    if len(lists) != 4:
        raise NotImplementedError("Adam with main parameters of its own")
    for gradient, parameter, mean, square in zip(*lists, strict=True):
        g, p = gradient.float(), parameter.float()
        if mode == 0:
            g = g + weight_decay * p
        mean.mul_(beta1).add_(g, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        update = (mean / first) / ((square / second).sqrt() + epsilon)
        if mode == 1:
            update = update + weight_decay * p
        parameter.copy_(p - learning_rate * update)


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"transformer_engine_torch.{name} has no stand-in on a CPU")

    return missing

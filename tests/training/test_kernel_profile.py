"""Kernels by kind: names that profilers recorded of cuBLAS, CUTLASS, cuDNN, NCCL, torch and Transformer Engine."""

from __future__ import annotations

import pytest

from octavo.training.kernel_profile import KernelWatch, kind_of, shares

RECORDED = {
    # github.com/NVIDIA/TransformerEngine/issues/1391: a linear layer on an H100, in FP8 and in BF16
    "sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize128x128x128_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x"
    "_cublas": "FP8 products",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x"
    "_cublas": "BF16 products",
    # cuBLAS 12 and 13 on H100, B200 and GB300
    "nvjet_tst_192x144_64x6_2x2_2cta_v_bz_TNT": "BF16 products",
    "nvjet_sm100_tst_128x256_64x6_2x1_2cta_v_bz_TNT": "BF16 products",
    "nvjet_qqtst_112x128_128x7_2x1_v_bz_coopA_algo2_TNN": "FP8 products",
    "nvjet_qqtst_128x256_128x6_2x2_2cta_h_bz_Avec32UE8M0_Bvec32UE8M0_TNT": "FP8 products",  # MX
    "nvjet_sm103_oohsh_128x128_256x7_2x2_2cta_v_bz_Avec16UE4M3_Bvec16UE4M3_TNT": "FP4 products",
    # CUTLASS, by its own naming (github.com/NVIDIA/cutlass/issues/2923)
    "cutlass3x_sm100_tensorop_gemm_e4m3_e4m3_f32_bf16_bf16_256x224x128_0x0x1_0_tnt_align16_2sm": "FP8 products",
    "ampere_bf16_s16816gemm_bf16_256x128_ldg8_f2f_stages_32x3_nn": "BF16 products",
    "ampere_sgemm_128x64_tn": "other products",
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_kernel0_0": "attention",
    "cudnn_generated_fort_native_sdpa_sm100_flash_bprop_f16_knob_26": "attention",
    "fmha_cutlassF_bf16_aligned_64x128_rf_sm80": "attention",
    "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "NCCL",
    "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)": "NCCL",
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>": "other",
    "Memcpy DtoD (Device -> Device)": "other",
}


@pytest.mark.parametrize(("name", "kind"), RECORDED.items())
def test_the_kind_of_a_kernel(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_shares_of_the_time_by_kind_largest_first() -> None:
    seconds = {
        "nvjet_qqtst_a": 3.0,
        "nvjet_qrtst_b": 2.0,
        "ncclDevKernel_AllGather_RING_LL": 4.0,
        "Memset (Device)": 1.0,
    }
    assert list((shares(seconds) or {}).items()) == [("FP8 products", 0.5), ("NCCL", 0.4), ("other", 0.1)]
    assert shares({}) is None


def test_without_a_gpu_there_is_none() -> None:
    watch = KernelWatch()
    with watch.on():
        pass
    assert watch.shares is None

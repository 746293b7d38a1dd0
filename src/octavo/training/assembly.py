"""A run's model, built and wrapped: layer specs, precision, initial values, BF16, data parallelism."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

from octavo.experiment.run import CellConfig, RunConfig
from octavo.precision import megatron as precision
from octavo.training.initial_values import initialise
from octavo.training.megatron import build_model, fused_kernels, transformer_config


def build_chunks(run: RunConfig) -> tuple[TransformerConfig, list[DistributedDataParallel], dict[str, int]]:
    """The model's chunks on this pipeline rank, ready to train, and all stages' linear layers by what they are.

    One chunk, or as many as there are virtual pipeline stages. Raises OctavoError when what was built is not in the
    precision that was asked for.
    """
    layout, on_gpu = run.parallelism, torch.cuda.is_available()
    config = model_config(run, on_gpu=on_gpu)
    provider: Any = precision.spec_provider(run.precision, on_gpu=on_gpu)
    model_class = GPTModel
    if not on_gpu:
        from octavo.cpu.layers import CpuLayers, CpuModel

        provider, model_class = CpuLayers(provider), CpuModel
    chunks, built = [], Counter[str]()
    for stage in range(layout.virtual_pipeline):
        vp_stage = stage if layout.virtual_pipeline > 1 else None
        model = build_model(
            run,
            config,
            provider,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            vp_stage=vp_stage,
            model_class=model_class,
        )
        precision.finish_model(model, run.precision, on_gpu=on_gpu)
        built.update(precision.verify_built(model, run.precision, on_gpu=on_gpu))
        initialise(model, run.seed, run.training)
        chunks.append(_wrap(run, config, model, first=stage == 0))
    config.finalize_model_grads_func = finalize_model_grads
    no_sync: Any = [chunk.no_sync for chunk in chunks]
    config.no_sync_func = no_sync if len(chunks) > 1 else no_sync[0]
    return config, chunks, precision.verify_stages(built, run.precision, on_gpu=on_gpu)


def model_config(run: CellConfig, *, on_gpu: bool) -> TransformerConfig:
    """Megatron-Core's configuration of a run's model in its precision on a device."""
    options = precision.transformer_config_options(run.precision, on_gpu=on_gpu)
    if on_gpu and not run.precision.emulate:
        options |= fused_kernels(run.model, deterministic=run.training.deterministic)
    return transformer_config(run, options)


def _wrap(run: RunConfig, config: TransformerConfig, model: GPTModel, *, first: bool) -> DistributedDataParallel:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        model.cuda()
    if run.parallelism.tensor > 1:
        _reduce_experts_over_their_ranks(model)
    options = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=on_gpu and run.parallelism.data > 1,
        use_distributed_optimizer=run.training.optimizer.distributed,
        fp8_param_gather=run.precision.fp8_parameters,
    )
    return DistributedDataParallel(config, options, Float16Module(config, model), disable_bucketing=not first)


def _reduce_experts_over_their_ranks(model: GPTModel) -> None:
    """Let experts' gradients be summed over the tensor-parallel ranks that each hold whole experts.

    Without expert parallelism Megatron-Core 0.16.1 sums them over the data-parallel ranks alone: the copies that
    tensor-parallel ranks have of an expert (experts are not split, and each rank routes its own tokens) would drift
    apart, and say nothing. `allreduce` is its mark of parameters that the ranks of a dense layer share.
    """
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            parameter.allreduce = False  # type: ignore[attr-defined]


def unwrapped(chunk: DistributedDataParallel) -> GPTModel:
    """The model inside."""
    return chunk.module.module  # type: ignore[return-value]

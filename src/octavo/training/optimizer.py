"""AdamW with its learning rates, as Megatron-Core makes them: BF16 parameters, FP32 main parameters and gradients.

The peak learning rate may differ for the embeddings (input and output head) and for the routers. Megatron-Core does
this by overrides of parameter groups; `lr_mult` goes with them, since it tells groups apart in checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer.optimizer_config import AdamOptimizerConfig, ParamKey, ParamPredicate
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler, ParamGroupOverride

from octavo.experiment.config import Training


def build_optimizer(chunks: list[DistributedDataParallel], training: Training, *, on_gpu: bool) -> MegatronOptimizer:
    """AdamW over the model's chunks. Norms and biases do not decay."""
    options, model = training.optimizer, chunks[0].config
    config = AdamOptimizerConfig(
        lr=options.learning_rate,
        min_lr=options.learning_rate * training.schedule.minimum,
        weight_decay=options.weight_decay,
        adam_beta1=options.beta1,
        adam_beta2=options.beta2,
        adam_eps=options.epsilon,
        clip_grad=options.clip_gradient,
        bf16=True,
        params_dtype=torch.bfloat16,
        use_distributed_optimizer=options.distributed,
        fp8_recipe=model.fp8_recipe if model.fp8 else None,  # of parameters that are kept in FP8
    )
    overrides: dict[ParamKey, dict[str, Any]] = {
        ParamKey(predicate=ParamPredicate(name="norms and biases", fn=_has_one_axis)): {"wd_mult": 0.0},
    }
    for key, multiplier in (
        (ParamKey(attr="is_embedding_or_output_parameter"), options.embedding_multiplier),
        (ParamKey(name="*.router.*"), options.router_multiplier),
    ):
        if multiplier != 1.0:  # two groups of one multiplier could not be told apart in a checkpoint
            overrides[key] = _learning_rate(training, multiplier)
    if not on_gpu:
        # torch's AdamW on CPUs is a loop of twelve passes unless it is told that it may take one
        overrides[ParamKey(name="*")] = {"fused": True}
    return get_megatron_optimizer(
        config,
        chunks,  # type: ignore[arg-type]
        config_overrides={key: ParamGroupOverride(**override) for key, override in overrides.items()},  # type: ignore[typeddict-item]
        use_gloo_process_groups=False,
    )


def _has_one_axis(parameter: torch.nn.Parameter) -> bool:
    return parameter.dim() == 1


def _learning_rate(training: Training, multiplier: float) -> dict[str, float]:
    peak = training.optimizer.learning_rate * multiplier
    return {"max_lr": peak, "min_lr": peak * training.schedule.minimum, "lr_mult": multiplier}


def build_scheduler(optimizer: MegatronOptimizer, training: Training) -> OptimizerParamScheduler:
    """The learning rate at step n of N, from 1: linear up to the peak, then down so that step N + 1 has the minimum.

    The caller steps it before each optimizer step: no step is spent at a learning rate of zero. Of a checkpoint it
    takes the number of steps alone: one of a longer run has another end.
    """
    steps, options, decay = training.total_steps, training.optimizer, training.schedule.decay
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=options.learning_rate,
        min_lr=options.learning_rate * training.schedule.minimum,
        lr_warmup_steps=training.warmup_steps,
        lr_decay_steps=steps + 1,
        lr_decay_style="WSD" if decay == "wsd" else decay,
        wsd_decay_steps=steps + 1 - training.decay_begins_after(steps),
        lr_wsd_decay_style="minus_sqrt",  # the best of arXiv 2405.18392, section 3
        start_wd=options.weight_decay,
        end_wd=options.weight_decay,
        wd_incr_steps=steps + 1,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )

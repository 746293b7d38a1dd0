"""An architecture -> Megatron-Core's configuration, layer specs and GPTModel.

Everything that an `Architecture` says is either expressed in Megatron-Core's own options or refused: a model
that is nearly the one asked for is not built. Which linear layers, norms and attention the specs are made of is the
`BackendSpecProvider`'s to say (`octavo.precision.megatron`, `octavo.cpu.layers`).
"""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import BackendSpecProvider
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_mtp_block_spec_for_backend,
    get_mlp_module_spec_for_backend,
)
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.multi_latent_attention import MLASelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)

from octavo.errors import OctavoError
from octavo.experiment.config import Parallelism, Training
from octavo.experiment.run import CellConfig
from octavo.megatron_versions import INSTALLED, latent_attention
from octavo.models.architecture import Architecture, Experts, GroupedQueryAttention
from octavo.models.stages import last_stage_layers

# 0.19 tells at every start that a successor of GPTModel is planned
logging.getLogger(GPTModel.__module__).setLevel(logging.ERROR)


def transformer_config(cell: CellConfig, options_beside: dict[str, Any]) -> TransformerConfig:
    """Megatron-Core's configuration of a cell's model.

    `options_beside` are the fields that precision and device decide (fp8, fp8_recipe, ...). Raises OctavoError for what
    Megatron-Core cannot express.
    """
    model = cell.model
    _check_expressible(model)
    options = {
        **_general_options(cell),
        **_attention_options(model),
        **_expert_options(cell),
        **options_beside,
    }
    section = MLATransformerConfig if model.attention.kind == "mla" else TransformerConfig
    unknown = options.keys() - {field.name for field in fields(section)}
    if unknown:
        raise OctavoError(
            f"megatron-core has no option {', '.join(sorted(unknown))}", where=f"megatron-core {INSTALLED}"
        )
    try:
        return section(**options)
    except (ValueError, AssertionError) as error:
        raise OctavoError(
            f"megatron-core refuses the cell's configuration: {error}", where=f"cell {cell.cell}"
        ) from error


def fused_kernels(model: Architecture, *, deterministic: bool) -> dict[str, Any]:
    """The options for fused kernels between the matrix products, all of them off by default.

    Without the fused permutation a mixture spends time on moving tokens that it need not, and a dense model none: what
    would be compared is who is fused. The fused cross-entropy is not deterministic: Megatron-LM refuses it in
    deterministic mode, and that of Transformer Engine, which is not stable, always (0.19.2, megatron/training).
    """
    return {
        "apply_rope_fusion": model.attention.kind != "mla",  # for MLA Megatron-Core 0.16.1 fuses YaRN alone
        "moe_permute_fusion": model.experts is not None,
        "cross_entropy_loss_fusion": not deterministic,
        "cross_entropy_fusion_impl": "native",
    }


def _general_options(cell: CellConfig) -> dict[str, Any]:
    model, layout, training = cell.model, cell.parallelism, cell.training
    return {
        "num_layers": model.layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.feed_forward_size or (model.experts.size if model.experts else None),
        "num_attention_heads": model.attention.heads,
        "normalization": "RMSNorm",
        "layernorm_epsilon": model.norm_epsilon,
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "bias_activation_fusion": not _has_biases(model),
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "bf16": True,
        "params_dtype": torch.bfloat16,
        "pipeline_dtype": torch.bfloat16,
        # octavo.training.initial_values does it again, but Megatron only then marks how parameters are split over ranks
        "perform_initialization": True,
        "init_method_std": training.initialisation_std,
        "embedding_init_method_std": training.embedding_initialisation_std,
        "mtp_num_layers": model.multi_token_prediction_layers or None,
        "mtp_loss_scaling_factor": training.multi_token_prediction_weight,
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "virtual_pipeline_model_parallel_size": layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
        **_pipeline_communication(layout),
        "num_layers_in_last_pipeline_stage": (
            last_stage_layers(model.layers, layout.pipeline) if model.layers % layout.pipeline else None
        ),
        "context_parallel_size": layout.context,
        "expert_model_parallel_size": layout.expert,
        "expert_tensor_parallel_size": 1,
        "sequence_parallel": layout.sequence,
        "deterministic_mode": training.deterministic,
        **_recomputation(training),
    }


RECOMPUTED = {
    "norms": "layernorm",
    "latent_projections": "mla_up_proj",
    "expert_activations": "moe_act",
    "dense_feed_forward": "mlp",
}
"""What is computed again, in Octavo's words and in those of `recompute_modules`."""


def _recomputation(training: Training) -> dict[str, Any]:
    if not training.recompute:
        return {}
    if "layers" in training.recompute:
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    modules = [RECOMPUTED[name] for name in training.recompute]
    return {"recompute_granularity": "selective", "recompute_modules": modules}


def _pipeline_communication(layout: Parallelism) -> dict[str, bool]:
    """How pipeline stages send to each other: one by one where stages are virtual, in batches where they are not.

    Of two stages each is both the one before and the one after the other. With virtual stages a batch would hold two
    messages between the same two ranks, which nothing tells apart: gradients would be taken for activations.
    Megatron-LM sets these two options in megatron/training/arguments.py, and TransformerConfig does not look.
    """
    interleaved = layout.virtual_pipeline > 1
    return {"overlap_p2p_comm": interleaved, "batch_p2p_comm": not interleaved}


def _attention_options(model: Architecture) -> dict[str, Any]:
    attention = model.attention
    if attention.kind == "mla":
        return {
            "multi_latent_attention": True,
            "qk_layernorm": True,
            "q_lora_rank": attention.q_lora_rank,
            "kv_lora_rank": attention.kv_lora_rank,
            "qk_head_dim": attention.qk_head_size,
            "qk_pos_emb_head_dim": attention.qk_rope_head_size,
            "v_head_dim": attention.v_head_size,
            "rope_type": "rope",
            "rotary_base": model.rope_theta,
            "add_bias_linear": False,  # its default of True would give every projection a bias
            "rotary_scaling_factor": 1.0,  # its default of 40 is YaRN's, and would scale the softmax of plain RoPE
        }
    window: dict[str, Any] = {}
    if attention.sliding_window is not None:
        # Megatron counts the earlier tokens, the architecture the tokens attended to, the token itself included
        window["window_size"] = (attention.sliding_window - 1, 0)
        if attention.sliding_window_every > 1:
            window["window_attn_skip_freq"] = [
                int(layer % attention.sliding_window_every == 0) for layer in range(model.layers)
            ]
    return {
        "num_query_groups": attention.kv_heads,
        "kv_channels": attention.head_size,
        "add_qkv_bias": attention.qkv_bias,
        "add_bias_linear": _has_biases(model),
        "qk_layernorm": attention.qk_norm == "head",
        "softmax_type": "learnable" if attention.sinks else "vanilla",
        **window,
    }


def _expert_options(cell: CellConfig) -> dict[str, Any]:
    experts = cell.model.experts
    if experts is None:
        return {}
    router = experts.router
    return {
        "num_moe_experts": experts.count,
        "moe_ffn_hidden_size": experts.size,
        "moe_router_topk": experts.top_k,
        "moe_layer_freq": [int(cell.model.is_mixed(layer)) for layer in range(cell.model.layers)],
        "moe_shared_expert_intermediate_size": experts.shared_size or None,
        "moe_router_score_function": router.score,
        "moe_router_pre_softmax": router.score == "softmax" and not router.normalise,
        "moe_router_topk_scaling_factor": router.scale,
        "moe_router_load_balancing_type": "aux_loss" if router.balance == "aux_loss" else "none",
        "moe_aux_loss_coeff": router.aux_loss_weight if router.balance == "aux_loss" else 0.0,
        "moe_router_enable_expert_bias": router.balance == "expert_bias",
        "moe_router_bias_update_rate": router.bias_update_rate,
        "moe_router_dtype": "fp32" if router.dtype == "fp32" else None,
        **_dispatcher(cell.parallelism),
        "moe_grouped_gemm": True,
    }


def _dispatcher(layout: Parallelism) -> dict[str, Any]:
    if layout.sends_once:
        return {"moe_token_dispatcher_type": "flex", "moe_flex_dispatcher_backend": layout.dispatcher}
    return {"moe_token_dispatcher_type": layout.dispatcher}


def _has_biases(model: Architecture) -> bool:
    return isinstance(model.attention, GroupedQueryAttention) and model.attention.output_bias


def _check_expressible(model: Architecture) -> None:
    """What Megatron-Core has no option for, or this trainer no kernels."""
    if not model.gated:
        raise _inexpressible(model, "gated: false", "a gated feed-forward (SwiGLU): others are planned and not trained")
    if isinstance(model.attention, GroupedQueryAttention):
        _check_attention(model, model.attention)
    if model.experts is not None:
        _check_router(model, model.experts)


def _check_attention(model: Architecture, attention: GroupedQueryAttention) -> None:
    if attention.qk_norm == "full":
        raise _inexpressible(model, "attention.qk_norm: full", "a norm over each head alone (head), or none")
    experts = model.experts
    everywhere = {attention.output_bias}
    if experts is not None:
        everywhere |= {experts.bias, experts.router.bias}
    whole = attention.qkv_bias and experts is not None and not model.dense_layers and not experts.shared_size
    if len(everywhere) > 1 or (attention.output_bias and not whole):
        raise _inexpressible(
            model,
            "this choice of biases",
            "attention.output_bias, experts.bias and experts.router.bias all or none, and with them qkv_bias, "
            "no dense layers and no shared expert (one option, add_bias_linear, sets them all)",
        )


def _check_router(model: Architecture, experts: Experts) -> None:
    router = experts.router
    if router.score == "sigmoid" and not router.normalise and experts.top_k > 1:
        raise _inexpressible(model, "sigmoid scores that are not normalised", "experts.router.normalise: true")
    if router.score == "softmax" and router.normalise and experts.top_k == 1:
        raise _inexpressible(model, "a single expert's score normalised to 1", "experts.router.normalise: false")


def _inexpressible(model: Architecture, found: str, expected: str) -> OctavoError:
    return OctavoError(
        f"Megatron-Core {INSTALLED} cannot train {found}",
        where=f"model {model.name}",
        expected=expected,
        fix="the model can be planned for (parameters, FLOPs, cost), but not trained",
    )


def build_model(
    cell: CellConfig,
    config: TransformerConfig,
    provider: BackendSpecProvider,
    *,
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    model_class: type[GPTModel] = GPTModel,
) -> GPTModel:
    """One pipeline stage's chunk of the model. Parallel state must be initialised.

    `pre_process`: the stage has the input embedding; `post_process`: it has the output head and the loss.
    """
    model = cell.model
    assert model.vocabulary_size is not None, "a resolved cell knows its vocabulary"
    block: Any = decoder_block_spec(config, provider, vp_stage=vp_stage)
    prediction: Any = None
    if config.mtp_num_layers:
        last = TransformerBlockSubmodules(layer_specs=[_layer_spec(config, provider, moe=model.experts is not None)])
        prediction = get_gpt_mtp_block_spec_for_backend(config, last, provider, vp_stage=vp_stage)
    return model_class(
        config=config,
        transformer_layer_spec=block,
        vocab_size=model.vocabulary_size,
        max_sequence_length=cell.training.sequence_length,
        pre_process=pre_process,
        post_process=post_process,
        share_embeddings_and_output_weights=model.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=model.rope_theta,  # type: ignore[arg-type]  # any number will do
        mtp_block_spec=prediction,
        vp_stage=vp_stage,
    )


def decoder_block_spec(
    config: TransformerConfig, provider: BackendSpecProvider, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """The layers of this rank's pipeline stage, dense and mixture-of-experts ones in the model's order."""
    frequency = config.moe_layer_freq
    pattern = frequency if isinstance(frequency, list) else [0] * config.num_layers
    offset = get_transformer_layer_offset(config, vp_stage=vp_stage)
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    specs = {kind: _layer_spec(config, provider, moe=bool(kind)) for kind in set(pattern)}
    norm: Any = provider.layer_norm(rms_norm=True, for_qk=False)
    return TransformerBlockSubmodules(
        layer_specs=[specs[kind] for kind in pattern[offset : offset + count]],
        layer_norm=norm,
    )


def _layer_spec(config: TransformerConfig, provider: BackendSpecProvider, *, moe: bool) -> ModuleSpec:
    """One transformer layer. Where a provider fuses a norm with the linear after it, the norm itself is left out."""
    fused = provider.fuse_layernorm_and_linear()
    norm = provider.layer_norm(rms_norm=True, for_qk=False)
    add: Any = get_bias_dropout_add
    mlp = get_mlp_module_spec_for_backend(
        backend=provider,
        num_experts=config.num_moe_experts if moe else None,
        moe_grouped_gemm=config.moe_grouped_gemm if moe else False,
    )
    if config.multi_latent_attention:
        attention, input_norm = _latent_attention_spec(provider, fused), norm
    else:
        attention, input_norm = _attention_spec(config, provider, fused), IdentityOp if fused else norm
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=input_norm,
            self_attention=attention,
            self_attn_bda=add,
            pre_mlp_layernorm=IdentityOp if fused and not moe else norm,
            mlp=mlp,
            mlp_bda=add,
        ),
    )


def _attention_spec(config: TransformerConfig, provider: BackendSpecProvider, fused: bool) -> ModuleSpec:
    qkv: Any = provider.column_parallel_layer_norm_linear() if fused else provider.column_parallel_linear()
    qk_norm = provider.layer_norm(rms_norm=True, for_qk=True) if config.qk_layernorm else IdentityOp
    return ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=qkv,
            core_attention=provider.core_attention(),
            linear_proj=provider.row_parallel_linear(),
            q_layernorm=qk_norm,
            k_layernorm=qk_norm,
        ),
    )


def _latent_attention_spec(provider: BackendSpecProvider, fused: bool) -> ModuleSpec:
    norm = IdentityOp if fused else provider.layer_norm(rms_norm=True, for_qk=True)
    up: Any = provider.column_parallel_layer_norm_linear() if fused else provider.column_parallel_linear()
    # Transformer Engine's plain linear keeps the down projections whole on every tensor-parallel rank
    down = provider.linear() if hasattr(provider, "linear") else provider.column_parallel_linear()  # type: ignore[attr-defined]
    return ModuleSpec(
        module=latent_attention(),
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=MLASelfAttentionSubmodules(
            linear_q_proj=provider.column_parallel_linear(),
            linear_q_down_proj=down,
            linear_q_up_proj=up,
            linear_kv_down_proj=down,
            linear_kv_up_proj=up,
            core_attention=provider.core_attention(),
            linear_proj=provider.row_parallel_linear(),
            q_layernorm=norm,
            kv_layernorm=norm,
        ),
    )

"""The values that training starts from: every parameter's own, whatever else the model holds.

Seeds are paired over cells (DESIGN, honesty rule 5): dense and mixture-of-experts models of one seed begin with the
same embeddings, attention and norms. So a parameter's values depend on the seed, on its name in the whole model (layers
and experts numbered globally) and on its shape alone, not on which other parameters there are, nor on how the
model is spread over ranks: a rank draws the whole parameter and keeps its part.

Weights are normal with the run's standard deviation (the input embedding may have its own), those that write to the
residual stream divided by sqrt(2 layers) as in Megatron-LM (arXiv 1909.08053, section 2.2) and GPT-2; norms are one,
biases and sinks zero.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from octavo.experiment.config import Training

RESIDUAL = re.compile(r"\.(linear_proj\.weight|linear_fc2\.weight(\.\d+)?|weight2)$")
"""Parameters whose output is added to the residual stream."""
EMBEDDING = "embedding.word_embeddings.weight"
STACKED = re.compile(r"\.(weight|bias)[12]$")
"""Parameters of all experts of a rank in one tensor, the first axis being the expert."""
NUMBERED = re.compile(r"(\.linear_fc[12]\.(?:weight|bias))(\d+)$")
"""Transformer Engine's: one parameter per local expert, named weight0, weight1, ..."""


def initialise(model: GPTModel, seed: int, training: Training) -> None:
    """Set all parameters of one pipeline stage's chunk."""
    residual = training.initialisation_std / math.sqrt(2 * model.config.num_layers)
    embedding = training.embedding_initialisation_std or training.initialisation_std
    with torch.no_grad():
        for name, parameter in global_names(model):
            if parameter.dim() == 1 or ".bias" in name:
                parameter.fill_(1.0 if name.endswith(("norm.weight", "layer_norm_weight")) else 0.0)
                continue
            deviation = embedding if name == EMBEDDING else training.initialisation_std
            deviation = residual if RESIDUAL.search(name) else deviation
            if STACKED.search(name):
                first = parallel_state.get_expert_model_parallel_rank() * parameter.shape[0]
                for local, values in enumerate(parameter):
                    values.copy_(_normal(f"{name}.{first + local}", tuple(values.shape), seed, deviation))
            else:
                values = _part(_normal(name, _whole_shape(name, parameter), seed, deviation), name, parameter)
                parameter.copy_(values)
                _keep_unrounded(parameter, values)


def global_names(model: GPTModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by their names in the whole model: layers and experts numbered from 0 over all ranks.

    An output head that shares the embedding's weight is the embedding, also where the two are on different pipeline
    stages and each has its copy: Megatron-Core adds up their gradients, and the copies must begin alike.
    """
    numbers = {
        f"{name}.": f"{name.rpartition('.')[0]}.{module.layer_number - 1}."
        for name, module in model.named_modules()
        if isinstance(module, TransformerLayer) and name.rpartition(".")[2].isdigit()
    }
    local_experts = (model.config.num_moe_experts or 0) // parallel_state.get_expert_model_parallel_world_size()
    first_expert = parallel_state.get_expert_model_parallel_rank() * local_experts
    for name, parameter in model.named_parameters():
        if name == "output_layer.weight" and model.share_embeddings_and_output_weights:
            yield EMBEDDING, parameter
            continue
        local = next((prefix for prefix in numbers if name.startswith(prefix)), None)
        whole = numbers[local] + name.removeprefix(local) if local else name
        numbered = NUMBERED.search(whole) if ".experts." in whole else None
        if numbered:
            whole = whole[: numbered.start()] + f"{numbered.group(1)}.{first_expert + int(numbered.group(2))}"
        yield whole, parameter


def _normal(name: str, shape: tuple[int, ...], seed: int, deviation: float) -> Tensor:
    """Normal values that depend on the seed, the name and the shape alone."""
    generator = torch.Generator().manual_seed(seed_of(seed, name))
    return torch.randn(shape, generator=generator).mul_(deviation)


def seed_of(*parts: int | str) -> int:
    """A generator's seed, below 2^63, that depends on all parts."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _keep_unrounded(parameter: nn.Parameter, values: Tensor) -> None:
    """Let the FP32 main weights of a parameter kept in FP8 begin with the BF16 values, as without `fp8_parameters`.

    Transformer Engine keeps on the CPU the values that it drew itself, and Megatron-Core's distributed optimizer makes
    the main weights of those (`get_high_precision_init_val`, transformer_engine/pytorch/module/base.py).
    """
    if hasattr(parameter, "get_high_precision_init_val"):
        kept: Tensor = parameter.get_high_precision_init_val()  # type: ignore[operator]
        kept.copy_(values)


def _whole_shape(name: str, parameter: nn.Parameter) -> tuple[int, ...]:
    shape = list(parameter.shape)
    if _is_split(parameter):
        shape[parameter.partition_dim] *= _ranks(name)  # type: ignore[attr-defined]
    return tuple(shape)


def _part(whole: Tensor, name: str, parameter: nn.Parameter) -> Tensor:
    """This rank's part of a parameter that tensor parallelism splits; SwiGLU's gate and up are split each by itself."""
    if not _is_split(parameter) or _ranks(name) == 1:
        return whole
    axis: int = parameter.partition_dim  # type: ignore[attr-defined]
    rank, ranks = parallel_state.get_tensor_model_parallel_rank(), _ranks(name)
    halves = whole.chunk(2, axis) if "linear_fc1" in name else (whole,)
    return torch.cat([half.chunk(ranks, axis)[rank] for half in halves], axis)


def _is_split(parameter: nn.Parameter) -> bool:
    return getattr(parameter, "tensor_model_parallel", False)


def _ranks(name: str) -> int:
    """Tensor-parallel ranks of a parameter; experts are not split (expert tensor parallelism is 1)."""
    return 1 if ".experts." in name else parallel_state.get_tensor_model_parallel_world_size()

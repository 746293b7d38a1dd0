"""Construct models with Transformer Engine's layers on the meta device, as a program: a JSON list of
[model, precision, whether to replace a layer by a plain one] on standard input, one JSON line for each on standard
output: the linear layers by implementation, the parameters and the recipe in a layer's state as a checkpoint has it, or
the error. With `--compiled` Transformer Engine's own libraries are loaded, which the GPU image has; without, stand-ins
for them. With `--second-of-four` the models are the second of four pipeline stages, with `--first-of-two` the first of
two tensor-parallel ranks, in a process group that exchanges nothing. With `--sizes` the models have a layer after their
leading dense ones and no more, and the answer has the size of every parameter.
"""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import transformer_engine_without_gpu

os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0"  # as `octavo train` sets it
transformer_engine_without_gpu.pretend(compiled="--compiled" in sys.argv[1:])

import torch  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.extensions.transformer_engine import TELayerNormColumnParallelLinear, TELinear  # noqa: E402
from megatron.core.fp4_utils import get_fp4_recipe  # noqa: E402
from megatron.core.fp8_utils import get_fp8_recipe  # noqa: E402
from megatron.core.tensor_parallel import random  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

from octavo.errors import OctavoError  # noqa: E402
from octavo.experiment.load import load_experiment  # noqa: E402
from octavo.models.catalogue import read_architecture, with_vocabulary  # noqa: E402
from octavo.precision import megatron as precisions  # noqa: E402
from octavo.precision.config import Precision  # noqa: E402
from octavo.training.assembly import model_config  # noqa: E402
from octavo.training.megatron import build_model  # noqa: E402
from octavo.training.plain_reading import check_scaling_state  # noqa: E402

_FUSED = ("apply_rope_fusion", "moe_permute_fusion", "cross_entropy_loss_fusion")


def construct(model: str, precision: Precision, *, replace: bool) -> dict[str, Any]:
    """The linear layers of a model by implementation, and the recipe."""
    architecture = with_vocabulary(read_architecture(model))
    if "--sizes" in sys.argv[1:]:
        dense = architecture.experts.leading_dense_layers if architecture.experts else 0
        architecture = architecture.model_copy(update={"layers": dense + 1})
    run = load_experiment("quickstart").run("dense-bf16", 1)
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    tensor = parallel_state.get_tensor_model_parallel_world_size()
    layout = run.parallelism.model_copy(update={"pipeline": stages, "tensor": tensor})
    run = run.model_copy(update={"model": architecture, "precision": precision, "parallelism": layout})
    config = model_config(run, on_gpu=True)
    provider = precisions.spec_provider(precision, on_gpu=True)
    with torch.device("meta"):
        built = build_model(
            run,
            config,
            provider,
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
        )
    precisions.finish_model(built, precision, on_gpu=True)
    if replace:
        built.decoder.layers[1].self_attention.linear_proj = torch.nn.Linear(8, 8, device="meta")
    read = _state_is_read(built, config)
    return {
        "read": read,
        "built": precisions.verify_built(built, precision, on_gpu=True),
        "fused": sorted(key for key, value in vars(config).items() if key in _FUSED and value),
        "parameters": sum(parameter.numel() for parameter in built.parameters()),
        **({"sizes": _sizes(built)} if "--sizes" in sys.argv[1:] else {}),
    }


def _state_is_read(built: Any, config: Any) -> str:
    """The class of the recipe in the state that Transformer Engine saves of a layer; an error if that is refused.

    It is "nothing" where the state is empty.
    """
    recipe: Any = get_fp4_recipe(config) if config.fp4 else get_fp8_recipe(config) if config.fp8 else None
    layer: Any = next(one for one in built.modules() if isinstance(one, TELayerNormColumnParallelLinear | TELinear))
    scaling = SimpleNamespace(scale=torch.ones(3), amax_history=torch.zeros(8, 3))
    layer.fp8_meta |= {"fp8_checkpoint": recipe is not None, "recipe": recipe, "num_gemms": 1}
    layer.fp8_meta |= {"scaling_fwd": scaling, "scaling_bwd": scaling}
    state = layer.get_extra_state()
    check_scaling_state({"layer._extra_state": state})
    return type(recipe).__name__ if state.numel() else "nothing"


def _sizes(model: torch.nn.Module) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def main() -> None:
    rank, stages = (1, 4) if "--second-of-four" in sys.argv[1:] else (0, 1)
    tensor = 2 if "--first-of-two" in sys.argv[1:] else 1
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=stages * tensor)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=stages,
        expert_tensor_parallel_size=1,
        create_gloo_process_groups=False,
    )
    random.model_parallel_cuda_manual_seed(1)
    for model, options, replace in json.load(sys.stdin):
        try:
            answer = construct(model, Precision(**options), replace=replace)
        except OctavoError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

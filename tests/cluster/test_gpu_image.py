"""The GPU image, built to its end on a machine without a GPU, and every model in every recipe constructed inside it.

Not part of the default run, as it takes half an hour on two cores, and 20 GB: `pytest -m gpu_image`. What kernels
compute is not tested here.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest

from octavo.layout import image_file
from octavo.models.architecture import Architecture
from octavo.models.catalogue import model_names, read_architecture
from octavo.precision.config import RecipeName
from octavo.precision.recipes import RECIPES
from tests.cluster.conftest import REPOSITORY, Checkout, checkout_with_image, other_packages

pytestmark = [pytest.mark.gpu_image, pytest.mark.timeout(9000)]

CASES: list[tuple[str, RecipeName]] = [(model, recipe) for model in model_names() for recipe in get_args(RecipeName)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return checkout_with_image(tmp_path_factory.mktemp("gpu_image") / "octavo", "gpu")


def inside(checkout: Checkout, *command: str, given: str = "") -> str:
    """What a command in the image prints, which sees this repository and nothing else."""
    apptainer = [str(checkout.programs[1] / "apptainer"), "exec", "--contain", "--cleanenv", "--no-home"]
    settings = ["--env", f"OCTAVO_ROOT={REPOSITORY}", "--env", f"PYTHONPATH={REPOSITORY / 'src'}"]
    binds = ["--bind", f"{REPOSITORY}:{REPOSITORY}:ro", "--pwd", str(REPOSITORY)]
    image = str((checkout.root / image_file("gpu")).resolve())
    done = subprocess.run(
        [*apptainer, *settings, *binds, image, *command], input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_its_transformer_engine_is_compiled_for_its_cuda(checkout: Checkout) -> None:
    """It loads, with symbols resolved, and the kernels' library is the one of CUDA 13, as torch is."""
    program = (
        "import torch, transformer_engine.pytorch, transformer_engine_torch as extension; "
        "print(torch.version.cuda.split('.')[0], extension.get_cublasLt_version() // 10000)"
    )
    assert inside(checkout, "python3", "-c", program).split()[-2:] == ["13", "13"]


def test_what_is_installed_is_what_the_packages_ask_for(checkout: Checkout) -> None:
    """All but what the lock leaves out on purpose."""
    assert "No broken requirements" in inside(checkout, "python3", "-m", "pip", "check")


def test_every_package_is_the_locks(checkout: Checkout) -> None:
    record = json.loads((checkout.root / image_file("gpu")).with_suffix(".json").read_text())
    assert other_packages(record["packages"]["pip"], checkout.root / "requirements-gpu.lock") == set()


def test_nccl_finds_the_libraries_of_infiniband(checkout: Checkout) -> None:
    program = "import ctypes; [ctypes.CDLL(name) for name in ('libibverbs.so.1', 'librdmacm.so.1')]"
    inside(checkout, "python3", "-c", program)


def test_triton_may_write_its_cache_without_a_home(checkout: Checkout) -> None:
    inside(checkout, "sh", "-c", 'mkdir -p "$TRITON_CACHE_DIR" && touch "$TRITON_CACHE_DIR/x" && ! touch ~/x')


@pytest.fixture(scope="module")
def built(checkout: Checkout) -> dict[tuple[str, str], Any]:
    cases = json.dumps([(model, {"recipe": recipe}, False) for model, recipe in CASES])
    program: Path = REPOSITORY / "tests/precision/construct_models.py"
    printed = inside(checkout, "python3", "-W", "ignore", str(program), "--compiled", given=cases)
    answers = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return dict(zip(CASES, answers, strict=True))


@pytest.mark.parametrize(("model", "recipe"), CASES)
def test_every_model_is_built_in_every_recipe(
    built: dict[tuple[str, str], Any], model: str, recipe: RecipeName
) -> None:
    """All its linear layers are Transformer Engine's, in the recipe, but for the output head.

    So are, in BF16, those of multi-token prediction where the recipe is of four bits: Megatron-Core leaves them out.
    """
    answer = built[model, recipe]
    if refusal := refused(model, recipe):
        assert refusal in answer["error"]
        return
    assert answer.get("error") is None
    left = prediction(model) if recipe == "nvfp4" else 0
    assert answer["built"] == {
        f"{recipe} (Transformer Engine)": linears(model) - left,
        "bf16 (Megatron-Core)": 1,
        **({"bf16 (Transformer Engine)": left} if left else {}),
    }


def refused(model: str, recipe: RecipeName) -> str | None:
    """What cannot be built, and is told."""
    architecture = read_architecture(model)
    attention = architecture.attention
    if not architecture.gated:
        return "cannot train gated: false"
    if attention.kind == "gqa" and attention.qk_norm == "full":
        return "cannot train attention.qk_norm: full"
    if model == "laptop-moe" and RECIPES[recipe].quantised:  # its experts are 72 wide, which no FP8 kernel takes
        return f"multiples of {32 if recipe == 'fp8_mxfp8' else 16}"
    return None


def linears(model: str) -> int:
    """Linear layers of a model but for the output head; gate and up are one, and experts are one group."""
    architecture = read_architecture(model)
    return (
        architecture.dense_layers * (in_attention(architecture) + 2)
        + architecture.moe_layers * (in_attention(architecture) + in_experts(architecture))
        + prediction(model)
    )


def prediction(model: str) -> int:
    """Those of multi-token prediction: for each token more, the last layer again and a projection into it."""
    architecture = read_architecture(model)
    last = in_attention(architecture) + (in_experts(architecture) if architecture.experts else 2)
    return architecture.multi_token_prediction_layers * (last + 1)


def in_attention(architecture: Architecture) -> int:
    """Query, key and value in one, output; or query (down and) up, key and value down and up, output."""
    return 2 if architecture.attention.kind == "gqa" else 5 if architecture.attention.q_lora_rank else 4


def in_experts(architecture: Architecture) -> int:
    """The experts' two, and two more of a shared one."""
    return 4 if architecture.experts and architecture.experts.shared_size else 2

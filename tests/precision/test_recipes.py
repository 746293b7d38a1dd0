"""Which recipe runs where, and what an experiment may ask of it; what a refusal says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from octavo.configuration import read_section
from octavo.errors import OctavoError
from octavo.experiment.checks import check_experiment
from octavo.experiment.cluster import Device
from octavo.experiment.load import load_experiment
from octavo.experiment.precision_checks import check_recipe
from octavo.layout import configs
from octavo.precision.config import Precision
from octavo.precision.recipes import RECIPES

# What Transformer Engine 2.20.2 answers; tests/precision/test_transformer_engine.py asks it.
HAVE = {
    "8.0": {"bf16"},
    "8.9": {"bf16", "fp8_delayed", "fp8_tensorwise"},
    "9.0": {"bf16", "fp8_delayed", "fp8_tensorwise", "fp8_blockwise"},
    "10.0": {"bf16", "fp8_delayed", "fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8", "nvfp4"},
    "10.3": {"bf16", "fp8_delayed", "fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8", "nvfp4"},
    "12.0": {"bf16", "fp8_delayed", "fp8_tensorwise", "fp8_blockwise", "nvfp4"},
}


def device(capability: str | None) -> Device:
    """One of the devices that Octavo knows, with another compute capability."""
    known = read_section(next(iter(sorted((configs().clusters / "devices").glob("h100*.yaml")))), Device)
    if capability is None:
        return known.model_copy(update={"kind": "cpu", "compute_capability": None, "name": "a CPU"})
    return known.model_copy(update={"compute_capability": capability, "name": f"GPU {capability}"})


def check(precision: dict[str, Any], capability: str | None, cuda: str | None = "13.0", *, layers: int = 32) -> None:
    where = "experiment.yaml precisions"
    check_recipe(Precision(**precision), layers=layers, device=device(capability), cuda=cuda, where=where)


@pytest.mark.parametrize("capability", HAVE)
@pytest.mark.parametrize("recipe", RECIPES)
def test_each_gpu_generation_has_its_recipes(capability: str, recipe: str) -> None:
    if recipe in HAVE[capability]:
        check({"recipe": recipe}, capability)
        return
    with pytest.raises(OctavoError) as caught:
        check({"recipe": recipe}, capability)
    assert f"does not have recipe {recipe}" in str(caught.value)
    assert "experiment.yaml precisions" in str(caught.value)
    able = [one for one, recipes in HAVE.items() if recipe in recipes]
    assert all(one in str(caught.value.expected) for one in able)  # the GPUs that can
    assert all(one in str(caught.value.fix) for one in HAVE[capability])  # and what this one can


def test_every_gpu_that_octavo_knows_is_in_the_table() -> None:
    for path in (configs().clusters / "devices").glob("*.yaml"):
        known = read_section(path, Device)
        assert known.kind == "cpu" or known.compute_capability in HAVE


@pytest.mark.parametrize(
    ("cuda", "fits"), [("12.8", False), ("12.9", True), ("13.0", True), ("12.10", True), (None, False)]
)
def test_blockwise_needs_cuda_12_9(cuda: str | None, fits: bool) -> None:
    if fits:
        check({"recipe": "fp8_blockwise"}, "9.0", cuda)
    else:
        with pytest.raises(OctavoError, match=r"needs CUDA 12\.9"):
            check({"recipe": "fp8_blockwise"}, "9.0", cuda)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "nvfp4"])
def test_cpus_emulate(recipe: str) -> None:
    check({"recipe": recipe}, None, None)


def test_a_gpu_emulates_what_it_lacks_if_told_to() -> None:
    check({"recipe": "fp8_mxfp8", "emulate": True}, "8.0")


@pytest.mark.parametrize(
    ("precision", "capability", "message"),
    [
        ({"recipe": "nvfp4"}, None, "has no emulation"),
        ({"recipe": "bf16", "accumulation": "fp14"}, None, "bf16 has no accumulation"),
        ({"recipe": "bf16", "emulate": True}, "9.0", "bf16 has no emulate"),
        ({"recipe": "fp8_blockwise", "amax_history": 16}, None, "fp8_blockwise, whose scales have no history"),
        ({"recipe": "bf16", "amax_history": 16}, None, "bf16, whose scales have no history"),
        ({"recipe": "fp8_tensorwise", "products": []}, None, "no product in FP8"),
        ({"recipe": "fp8_tensorwise", "block_size": 64}, None, "has no blocks"),
        ({"recipe": "fp8_delayed", "first_last_layers_bf16": True}, None, "first_last_layers_bf16 with fp8_delayed"),
        ({"recipe": "fp8_blockwise", "fp8_parameters": True}, None, "fp8_parameters needs Transformer Engine"),
        ({"recipe": "fp8_blockwise", "accumulation": "fp14"}, "9.0", "cannot be asked of Transformer Engine"),
        ({"recipe": "fp8_blockwise", "block_size": 64}, "9.0", "cannot be asked of Transformer Engine"),
        ({"recipe": "fp8_blockwise", "output_head": True}, "9.0", "cannot be asked of Transformer Engine"),
        ({"recipe": "fp8_blockwise", "formats": {"input": "e5m2"}}, "9.0", "formats .* cannot be asked of Transformer"),
        ({"recipe": "fp8_blockwise", "formats": {"gradient": "e4m3"}}, None, "formats: {gradient: e4m3} for fp8_block"),
        ({"recipe": "nvfp4", "formats": {"gradient": "e5m2"}}, "10.0", "formats: {gradient: e5m2} for nvfp4"),
        ({"recipe": "bf16", "formats": {"gradient": "e5m2"}}, None, "bf16 has no formats"),
        ({"recipe": "bf16", "scales": "fp32"}, None, "bf16 has no scales"),
        ({"recipe": "fp8_tensorwise", "scales": "fp32"}, None, "whose scales are FP32"),
        ({"recipe": "fp8_delayed", "scales": "power_of_two"}, None, "whose scales are FP32"),
        ({"recipe": "fp8_mxfp8", "scales": "fp32"}, None, "whose scales are E8M0"),
        ({"recipe": "fp8_blockwise", "scales": "fp32", "accumulation": "fp14"}, None, "scales: fp32 with accumulation"),
        ({"recipe": "fp8_blockwise", "scales": "fp32"}, "10.0", "multiplies blocks as MX"),
        ({"recipe": "fp8_blockwise", "products": ["forward"]}, "9.0", "cannot be asked of Transformer Engine"),
        ({"recipe": "fp8_tensorwise", "products": ["forward", "input_gradient"]}, "9.0", "cannot be asked"),
        ({"recipe": "fp8_delayed", "products": ["forward", "input_gradient"]}, "9.0", "cannot be asked"),
    ],
)
def test_what_cannot_be_is_refused(precision: dict[str, Any], capability: str | None, message: str) -> None:
    with pytest.raises(OctavoError, match=message) as caught:
        check(precision, capability)
    assert caught.value.where


@pytest.mark.parametrize(
    ("precision", "capability"),
    [
        ({"recipe": "fp8_mxfp8", "formats": {"gradient": "e5m2"}}, "10.0"),
        ({"recipe": "fp8_delayed", "formats": {"gradient": "e4m3"}}, "8.9"),
        ({"recipe": "fp8_blockwise", "formats": {"input": "e5m2", "weight": "e5m2"}}, None),
        ({"recipe": "fp8_blockwise", "scales": "fp32"}, "9.0"),
        ({"recipe": "fp8_blockwise", "scales": "fp32", "emulate": True}, "10.0"),
        ({"recipe": "fp8_tensorwise", "scales": "power_of_two"}, "12.0"),
    ],
)
def test_other_formats_and_scales_where_a_device_has_them(precision: dict[str, Any], capability: str | None) -> None:
    check(precision, capability)


def test_a_model_must_have_layers_between_the_first_and_the_last() -> None:
    precision = {"recipe": "fp8_tensorwise", "first_last_layers_bf16": True}
    check(precision, "9.0", layers=3)
    with pytest.raises(OctavoError, match="leaves no layer in fp8_tensorwise: the model has 2") as caught:
        check(precision, "9.0", layers=2)
    assert "leave first_last_layers_bf16 out" in str(caught.value.fix)


@pytest.mark.parametrize(("capability", "fix"), [("10.0", "leave emulate out: GPU 10.0"), ("9.0", None)])
def test_what_is_not_emulated_but_there_needs_no_emulation(capability: str, fix: str | None) -> None:
    with pytest.raises(OctavoError, match="nvfp4 has no emulation") as caught:
        check({"recipe": "nvfp4", "emulate": True}, capability)
    assert (caught.value.fix or "").startswith(fix or "")
    assert bool(caught.value.fix) == bool(fix)


def test_block_sizes_are_recommended_where_they_can_be_chosen() -> None:
    """Not for nvfp4: Transformer Engine's are fixed, and it is not emulated."""
    with pytest.raises(OctavoError) as caught:
        check({"recipe": "fp8_tensorwise", "block_size": 64}, None)
    assert caught.value.expected == "block_size with one of fp8_blockwise, fp8_mxfp8 (emulated)"


def test_the_table_in_the_docs_is_the_recipes() -> None:
    """Every column but the measured one."""
    lines = (configs().root.parent / "docs" / "precision.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    table = {row[0].strip("`"): row[1:] for row in rows if len(row) == 9}
    assert list(table) == list(RECIPES)
    for recipe in RECIPES.values():
        operands, gradient, shared, scale, gpus, emulated, _, source = table[recipe.name]
        formats = {kind: format.name for kind, format in recipe.formats.items()}
        assert (operands, operands, gradient) == tuple(
            formats.get(kind, "BF16") for kind in ("input", "weight", "gradient")
        )
        blocks = {f"{across}x{along}" for across, along in recipe.blocks.values()}
        assert set(re.findall(r"\d+x\d+", shared)) == blocks
        assert scale == (recipe.scale if recipe.quantised else "")
        assert tuple(re.findall(r"\b\d+\.\d\b", gpus.partition(", with CUDA")[0])) == recipe.capabilities
        assert gpus.partition("with CUDA ")[2] == (recipe.minimum_cuda or "")
        assert (
            emulated.partition(":")[0] == ("yes" if recipe.emulated else "no") if recipe.quantised else "the reference"
        )
        for reference in (*re.findall(r"`(\w+)`", source), *re.findall(r"arXiv [\d.]+", source)):
            assert reference in recipe.source
        assert len(re.findall(r"arXiv", source)) == len(re.findall(r"arXiv", recipe.source))


def test_the_ablations_shown_as_comments_are_ablations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """laptop-ablations.yaml with its last comments taken for what they are."""
    shutil.copytree(configs().root, tmp_path / "configs")
    path = tmp_path / "configs" / "experiments" / "laptop-ablations.yaml"
    text, shown = path.read_text().split("  # Others are a line each")
    lines = [line.replace("  #   ", "  ", 1) for line in shown.splitlines()[1:]]
    path.write_text("\n".join([text, *lines]))
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    experiment = load_experiment("laptop-ablations")
    check_experiment(experiment)
    cells = {name: cell for name, cell in experiment.cells.items() if cell.ablation}
    assert cells["moe-fp8_blockwise+forward_alone"].precision.products == ["forward"]
    assert cells["moe-fp8_blockwise+ends_in_bf16"].precision.first_last_layers_bf16
    assert cells["moe-fp8_blockwise+e5m2_gradients"].precision.formats == {"gradient": "e5m2"}
    assert cells["moe-fp8_blockwise+fp32_scales"].precision.scales == "fp32"
    assert cells["moe-fp8_blockwise+small_blocks"].precision.block_size == 32
    assert cells["moe-fp8_blockwise+head_in_fp8"].precision.output_head
    router = cells["moe-fp8_blockwise+router_in_bf16"].model.experts
    assert router is not None
    assert router.router.dtype == "bf16"

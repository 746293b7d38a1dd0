"""Published throughput of GPUs as settings that can be forecast: what the fit rests on, and what is read beside it.

NVIDIA's Megatron-Bridge performance summary, releases 25.11 to 26.08, and pairs of BF16 and FP8 of its earlier
benchmarking recipes (`configs/published`).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from functools import cache
from typing import cast, get_args

from octavo.experiment.cluster import Device
from octavo.experiment.config import Recomputed
from octavo.forecast.gpu import width
from octavo.forecast.setting import (
    RELEASES,
    Setting,
    Software,
    has_graphs,
    plain_layout,
    plain_training,
    read_device,
)
from octavo.layout import configs
from octavo.models.architecture import Architecture
from octavo.models.catalogue import read_architecture
from octavo.precision.config import Precision, RecipeName

MODELS = {
    "DeepSeekV3": "deepseek-v3",
    "GPT OSS 120B": "gpt-oss-120b",
    "LLAMA3.1_405B": "llama-3.1-405b",
    "LLAMA3_70B": "llama-3.1-70b",
    "LLAMA3_8B": "llama-3.1-8b",
    "Qwen3_30B_a3B": "qwen3-30b-a3b",
    "Grok-1": "grok-1",
    "Llama 3.1 405B": "llama-3.1-405b",
    "Llama 4 Maverick": "llama-4-maverick",
    "Nemotron-4 15B": "nemotron-4-15b",
    "Nemotron-4 340B": "nemotron-4-340b",
}
"""Names in the rows -> files in configs/models. Llama 3 has the sizes of Llama 3.1."""


@dataclass(frozen=True)
class Row:
    """One published figure."""

    model: str
    setting: Setting
    tokens_per_second_per_device: float
    model_tflops_per_device: float | None
    """As published; None where only tokens were."""
    file: str
    """Of FILES."""

    @property
    def counted(self) -> bool:
        """Whether it counts in the medians and coverages: those of the performance summary, all but NVFP4's."""
        return self.file == FILES[0] and self.in_intervals

    @property
    def in_intervals(self) -> bool:
        """Whether its left-out error goes into the intervals: all but NVFP4's."""
        return width(self.setting.precision.recipe) != "fp4"

    @property
    def key(self) -> str:
        """Equal for rows of different releases that are of one setting."""
        return repr(of_release(self.setting, RELEASES[-1]))


FILES = ("megatron_bridge_throughput.csv", "dgxc_bf16_fp8_pairs.csv")
"""Of configs/published: NVIDIA's performance summary, and pairs of BF16 and FP8 of NVIDIA's benchmarking recipes."""


@cache
def rows() -> list[Row]:
    """The published rows, equal settings as one object."""
    settings: dict[str, Setting] = {}
    found = []
    for name in FILES:
        with (configs().published / name).open(encoding="utf-8") as file:
            for record in csv.DictReader(file):
                row = _row(record, name)
                found.append(replace(row, setting=settings.setdefault(repr(row.setting), row.setting)))
    return found


RECIPES = "megatron_bridge_recipes.csv"
"""Of configs/published: what the recipes of the performance summary compute again or keep in the host's memory."""


@cache
def _recipes() -> dict[tuple[str, str, str], dict[str, str]]:
    """(model, gpu, precision) -> recipe."""
    with (configs().published / RECIPES).open(encoding="utf-8") as file:
        return {(one["model"], one["gpu"], one["precision"]): one for one in csv.DictReader(file)}


def _saved(record: dict[str, str], layers: int, *, graphs: bool) -> tuple[frozenset[Recomputed], float]:
    """What a row's recipe computes again, and the share of activations in the host's memory; none in whole graphs."""
    recipe = _recipes().get((record["model"].split(" (")[0], record["gpu"], record["precision"]))
    if recipe is None or graphs:
        return frozenset(), 0.0
    again = frozenset(name for name in get_args(Recomputed) if name in recipe["recompute"].split())
    return again, int(recipe["offloaded_layers"]) / layers


def _row(record: dict[str, str], file: str) -> Row:
    label = record["model"].split(" (")[0]
    model = read_architecture(MODELS[label])
    if "w/o MTP" in record["model"]:
        model = model.model_copy(update={"multi_token_prediction_layers": 0})
    sizes = {key: int(record[key] or 1) for key in ("n_gpus", "gbs", "mbs", "seq_length", "tp", "pp", "cp", "vp", "ep")}
    device, recipe, release = read_device(record["gpu"].lower()), record["precision"], record["release"]
    # NVIDIA's recipes keep the parameters in FP8 (src/megatron/bridge/training/mixed_precision.py of Megatron-Bridge)
    in_fp8 = file == FILES[0] and width(cast(RecipeName, recipe)) == "fp8"
    precision = Precision.model_validate({"recipe": recipe, "fp8_parameters": in_fp8})
    graphs = has_graphs(release, model, precision.recipe, device, sizes["n_gpus"])
    recompute, offloaded = _saved(record, model.layers, graphs=graphs)
    setting = Setting(
        model=model,
        training=plain_training(sizes["gbs"], sizes["mbs"], sizes["seq_length"]),
        layout=plain_layout(sizes["n_gpus"], sizes["tp"], sizes["pp"], sizes["cp"], sizes["vp"], sizes["ep"]),
        precision=precision,
        device=device,
        link_domain=device.link_domain,
        software=Software(
            release=release,
            graphs=graphs,
            sharded=int(record["fsdp"] or 0) > 1,
            gradient_bytes=2,
            recompute=recompute,
            offloaded=offloaded,
        ),
    )
    tflops = record.get("model_tflop_per_s_per_gpu")
    rate = float(record["tokens_per_s_per_gpu"])
    return Row(MODELS[label], setting, rate, float(tflops) if tflops else None, file)


def of_release(setting: Setting, release: str) -> Setting:
    """The same under another release of the software."""
    return replace(setting, software=replace(setting.software, release=release))


def fastest_published(model: Architecture, device: Device, recipe: RecipeName) -> Row | None:
    """The fastest published figure of a model on a kind of GPU in a recipe, of the newest release that has one; None:
    there is none."""
    if device.kind != "gpu":
        return None
    alike = [
        row
        for row in rows()
        if row.setting.device.name == device.name
        and row.setting.precision.recipe == recipe
        and row.setting.model.name == model.name
        and row.setting.model.multi_token_prediction_layers == model.multi_token_prediction_layers
    ]
    if not alike:
        return None
    newest = max((row.setting.software.release for row in alike), key=RELEASES.index)
    of_newest = [row for row in alike if row.setting.software.release == newest]
    return max(of_newest, key=lambda row: row.tokens_per_second_per_device)


def published_beside(model: Architecture, device: Device, recipe: RecipeName) -> str | None:
    """The fastest published figure in words; None: there is none.

    Layout, batch and number of GPUs are those of the publication: it says what can be reached, not what another layout
    should.
    """
    best = fastest_published(model, device, recipe)
    if best is None:
        return None
    tflops = f", {best.model_tflops_per_device:,.0f} model TFLOP/s" if best.model_tflops_per_device else ""
    balanced = ", experts' load forced to be equal" if best.setting.kind == "experts" else ""
    return (
        f"{best.tokens_per_second_per_device:,.0f} tokens/s per GPU{tflops} ({best.setting.layout.world_size} GPUs, "
        f"{best.setting.training.sequence_length:,} tokens a sequence{balanced}; NVIDIA "
        f"{best.setting.software.release}, configs/published/{best.file})"
    )

"""`octavo forecast`: one model on so many GPUs in one layout, without an experiment file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from octavo.errors import OctavoError
from octavo.experiment.layout_checks import check_layout
from octavo.experiment.precision_checks import check_recipe
from octavo.forecast.memory import fits, memory
from octavo.forecast.rows import published_beside
from octavo.forecast.setting import (
    RELEASE,
    RELEASES,
    Setting,
    Software,
    has_graphs,
    plain_layout,
    plain_training,
    read_device,
)
from octavo.forecast.steps import gpu_step
from octavo.models.catalogue import read_architecture, with_vocabulary
from octavo.precision.config import Precision, RecipeName

SCHEMA_VERSION = 1
NEWEST_CUDA = "13.0"
"""Assumed of a cluster that is not named."""

OPTIONS = {"tensor": "--tp", "pipeline": "--pp", "virtual_pipeline": "--vp", "context": "--cp", "expert": "--ep"}
"""Axis of Parallelism -> option."""


@dataclass(frozen=True)
class LayoutRequest:
    """What `octavo forecast` is asked."""

    model: str
    gpu: str
    n_gpus: int
    precision: RecipeName
    seq_length: int
    gbs: int
    mbs: int
    tp: int = 1
    pp: int = 1
    cp: int = 1
    vp: int = 1
    ep: int = 1
    release: str | None = None
    fsdp: bool = False


def forecast_layout(asked: LayoutRequest) -> dict[str, Any]:
    """The forecast as one JSON value; keys are only ever added to.

    Raises OctavoError for a layout that does not divide the devices, the batch, the experts or the heads, and for a
    precision that the GPU cannot do.
    """
    model = with_vocabulary(read_architecture(asked.model))
    device = read_device(asked.gpu.lower())
    if device.kind != "gpu":
        raise OctavoError(f"{device.name} is no GPU", where="--gpu", fix="plan CPU experiments with `octavo plan`")
    precision = Precision(recipe=asked.precision)
    check_recipe(precision, layers=model.layers, device=device, cuda=NEWEST_CUDA, where="--precision")
    layout = plain_layout(asked.n_gpus, asked.tp, asked.pp, asked.cp, asked.vp, asked.ep)
    check_layout(model, layout, asked.seq_length, lambda axis: OPTIONS[axis])
    if asked.gbs % (asked.mbs * layout.data):
        raise OctavoError(
            f"{asked.mbs * layout.data} does not divide gbs (mbs {asked.mbs} x data {layout.data}): {asked.gbs}",
            where="--gbs",
            expected=f"a multiple of {asked.mbs * layout.data}",
        )
    training = plain_training(asked.gbs, asked.mbs, asked.seq_length)
    release = asked.release or RELEASE
    if release not in RELEASES:
        raise OctavoError(f"no published row is of release {release}", where="--release", expected=", ".join(RELEASES))
    software = Software(
        release=release,
        graphs=has_graphs(release, model, asked.precision, device, asked.n_gpus),
        sharded=asked.fsdp,
        gradient_bytes=2,
    )
    step = gpu_step(Setting(model, training, layout, precision, device, device.link_domain, software))
    held = memory(model, training, layout, precision, device, software)
    return {
        "schema_version": SCHEMA_VERSION,
        "model": asked.model,
        "gpu": device.name,
        "n_gpus": asked.n_gpus,
        "precision": asked.precision,
        "release": release,
        "whole_step_graphs": software.graphs,
        "tokens_per_second_per_gpu": step.tokens_per_second_per_device,
        "low": step.low,
        "high": step.high,
        "interval": step.interval,
        "median_absolute_error": step.median_absolute_error,
        "model_tflops_per_gpu": step.model_tflops_per_device,
        "flops_per_token": step.flops_per_token,
        "memory_bytes_per_gpu": held.total,
        "memory_fits": fits(held.total, device),
        "memory": asdict(held),
        "device_hours_per_trillion_tokens": 1e12 / step.tokens_per_second_per_device / 3600,
        "step_seconds": step.seconds,
        "breakdown": step.breakdown,
        "published": published_beside(model, device, asked.precision),
        "basis": step.basis,
    }

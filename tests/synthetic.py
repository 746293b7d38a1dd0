"""Whole experiments whose truth is known, written in the very files that training writes.

`write_experiment` makes `configs/` and `results/<name>/runs/` below a folder; with OCTAVO_ROOT set to that folder every
verb from `octavo aggregate` on works on it. A cell's loss after t tokens is

    floor + (start - floor) / sqrt(1 + t x token_advantage / scale), times (1 + offset of precision and ablation),

so a token advantage of 1.25 means, exactly, the same loss for 1 / 1.25 of the tokens. On top lie a deviation that all
cells of a seed share (`seed_sd`), one of each run (`run_sd`) and white noise on training steps (`step_sd`); all are
relative to the loss.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from octavo.accounting.ledger import attempts_frame
from octavo.evidence.aggregate import aggregate
from octavo.experiment.load import load_experiment
from octavo.experiment.run import CellConfig, Experiment
from octavo.files import sha256
from octavo.layout import ConfigFolders, ExperimentFolder, RunFolder
from octavo.models.matched import matched_quantity
from octavo.records import AttemptRecord, MetricsRecord, Provenance, Result, write_table

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DOMAINS = ("code", "drama", "poetry", "scripture")
MANIFEST = "0" * 64


@dataclass(frozen=True)
class Truth:
    """What a synthetic experiment is made to show."""

    start: float = 5.5
    """Loss of an untrained model."""
    floor: float = 1.5
    scale: float = 20_000.0
    """Tokens after which the distance to the floor has shrunk by sqrt(2)."""
    token_advantage: Mapping[str, float] = field(default_factory=lambda: {"moe": 1.25})
    """Architecture -> how many times faster it learns per token than `dense`."""
    offsets: Mapping[str, float] = field(default_factory=dict)
    """Relative loss offset by precision, ablation, or cell; a run has the sum of those that name it."""
    seed_sd: float = 0.005
    run_sd: float = 0.0005
    step_sd: float = 0.01
    step_seconds: Mapping[str, float] = field(default_factory=lambda: {"dense": 1.0, "moe": 1.35})
    """By architecture, in BF16."""
    precision_seconds: Mapping[str, float] = field(
        default_factory=lambda: {"fp8_blockwise": 1.4, "fp8_tensorwise": 1.3}
    )
    """Factor on the step time by precision."""
    decay_worth: float = 0.0
    """By how much the loss is higher, relative, at the peak of the learning rate than where it has decayed."""
    startup_seconds: float = 10.0
    specialisation: float = 0.3
    """0: routing knows nothing of domains; 1: each domain has experts of its own."""

    def loss(self, architecture: str, names: Iterable[str], tokens: np.ndarray) -> np.ndarray:
        """The expected loss of a cell that `names` describe (precision, ablation, cell) after `tokens`."""
        learned = tokens * self.token_advantage.get(architecture, 1.0) / self.scale
        curve = self.floor + (self.start - self.floor) / np.sqrt(1 + learned)
        return curve * (1 + sum(self.offsets.get(name, 0.0) for name in names))


@dataclass(frozen=True)
class Failure:
    """A try that ends at `step` and is started again from the checkpoint before it."""

    step: int
    reason: str = "node_failure"


ATTENTION = {"kind": "gqa", "heads": 4, "kv_heads": 4, "head_size": 16}
MODELS: dict[str, dict[str, Any]] = {
    "dense": {"layers": 2, "hidden_size": 64, "feed_forward_size": 256, "attention": ATTENTION},
    "moe": {
        "layers": 2,
        "hidden_size": 64,
        "attention": ATTENTION,
        "experts": {"count": 8, "top_k": 2, "size": 64, "shared_size": 128},
    },
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "no_shared_expert": {
        "description": "four routed experts per token instead of two and the shared one",
        "cells": ["moe-bf16"],
        "change": {"model.experts.shared_size": 0, "model.experts.top_k": 4},
    },
    "few_experts": {
        "description": "half as many experts, twice as wide",
        "cells": ["moe-bf16"],
        "change": {"model.experts.count": 4, "model.experts.top_k": 1, "model.experts.size": 128},
    },
    "fp14": {
        "description": "FP8 products summed in about 14 bits",
        "cells": ["moe-fp8_blockwise"],
        "change": {"precision.accumulation": "fp14", "precision.emulate": True},
    },
}
DEVICES: dict[str, dict[str, Any]] = {
    "cpu": {
        "name": "one CPU core", "kind": "cpu", "peak_tflops": {"fp32": 0.1, "bf16": 0.4}, "memory_gib": 8,
        "memory_gb_per_second": 20, "link_gb_per_second": 10, "link_domain": 8, "network_gb_per_second": 1,
        "power_watts": 15, "sources": {"all": "synthetic"},
    },
    "gpu": {
        "name": "H100 SXM", "kind": "gpu", "compute_capability": "9.0",
        "peak_tflops": {"bf16": 989.0, "fp8": 1979.0}, "memory_gib": 80, "memory_gb_per_second": 3350,
        "link_gb_per_second": 450, "link_domain": 8, "network_gb_per_second": 50, "power_watts": 700,
        "sources": {"all": "synthetic"},
    },
}  # fmt: skip
OWNERSHIP = {
    "price_per_device": 40_000.0, "server_and_network_factor": 1.5, "years": 4.0, "utilisation": 0.8,
    "electricity_per_kwh": 0.1, "sources": {"all": "synthetic"},
}  # fmt: skip
ENERGY = {"pue": 1.2, "host_watts_per_device": 300.0, "sources": {"all": "synthetic"}}


def write_experiment(
    root: Path,
    *,
    name: str = "synthetic",
    truth: Truth | None = None,
    seeds: Sequence[int] = (1, 2, 3),
    precisions: Sequence[str] = ("bf16", "fp8_blockwise"),
    ablations: Mapping[str, Mapping[str, Any]] | None = None,
    cells: Sequence[str] | None = None,
    steps: int = 200,
    validation_interval: int = 10,
    device: str = "cpu",
    price: float = 2.0,
    ownership: Mapping[str, Any] | None = None,
    failures: Mapping[tuple[str, int], Failure] | None = None,
    unfinished: Mapping[tuple[str, int], int] | None = None,
    diverged: Iterable[tuple[str, int]] = (),
    superseded: Iterable[tuple[str, int]] = (),
    changes: Mapping[str, Any] | None = None,
) -> ExperimentFolder:
    """Write an experiment with its runs below `root`; the folder of its results.

    `device` is `cpu` (FP8 emulated) or `gpu`. `cells` are those whose runs are written (None: all). `failures` makes
    runs of two attempts, `unfinished` runs that are at a step and have no result, `diverged` runs that ended so, and
    `superseded` runs that were trained before under another configuration. `changes` replaces keys of the experiment
    file. The same arguments write the same bytes.
    """
    truth = truth or Truth()
    folders = write_configs(
        root, name, seeds, precisions, ABLATIONS if ablations is None else ablations, steps, validation_interval,
        device, price, ownership, changes or {},
    )  # fmt: skip
    experiment = load_experiment(name, folders)
    folder = ExperimentFolder(root / "results" / name)
    for cell, seed in experiment.runs():
        if cells is None or cell.cell in cells:
            write_run(
                folder.run(cell.cell, seed), experiment, cell, seed, truth,
                failure=(failures or {}).get((cell.cell, seed)),
                unfinished=(unfinished or {}).get((cell.cell, seed)),
                diverged=(cell.cell, seed) in set(diverged),
                superseded=(cell.cell, seed) in set(superseded),
            )  # fmt: skip
    return folder


def write_tables(root: Path, *, ablation: str | None = None, **arguments: Any) -> ExperimentFolder:
    """`write_experiment`, and then the tables of it or of one ablation; the folder that they are in."""
    folder = write_experiment(root, **arguments)
    experiment = load_experiment(folder.name, ConfigFolders(root / "configs"))
    with contextlib.chdir(root):
        attempts = attempts_frame(experiment)
    return aggregate(experiment, folder, attempts, ablation)


def write_configs(
    root: Path,
    name: str,
    seeds: Sequence[int],
    precisions: Sequence[str],
    ablations: Mapping[str, Any],
    steps: int,
    validation_interval: int,
    device: str,
    price: float,
    ownership: Mapping[str, Any] | None,
    changes: Mapping[str, Any],
) -> ConfigFolders:
    """The experiment, cluster and device files."""
    grid = {f"{model}-{precision}" for model in MODELS for precision in precisions}
    experiment = {
        "description": "a synthetic experiment",
        "models": MODELS,
        "precisions": list(precisions),
        "seeds": list(seeds),
        "data": {"sources": [{"kind": "files", "path": "text"}]},
        "tokenizer": {"kind": "bytes"},
        "training": {
            "steps": steps,
            "global_batch_size": 8,
            "micro_batch_size": 8,
            "sequence_length": 128,
            "optimizer": {"learning_rate": 1e-3},
            "evaluation": {"interval": validation_interval, "sequences": 16, "final_sequences": 64},
            "checkpoints": {"interval": max(1, steps // 4)},
        },
        "cluster": "synthetic",
        "ablations": {key: value for key, value in ablations.items() if set(value["cells"]) <= grid},
        **changes,
    }
    cluster: dict[str, Any] = {
        "description": "a synthetic cluster",
        "device": "synthetic",
        "devices_per_node": 8,
        "nodes": 1,
        "cuda": "13.0" if device == "gpu" else None,
        "rental": {"per_device_hour": price, "source": "synthetic"},
        "ownership": ownership,
        **({"energy": ENERGY} if ownership else {}),
    }
    for path, value in (
        (f"experiments/{name}", experiment),
        ("clusters/synthetic", cluster),
        ("clusters/devices/synthetic", DEVICES[device]),
    ):
        file = root / "configs" / f"{path}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(value, sort_keys=False))
    return ConfigFolders(root / "configs")


def write_run(
    folder: RunFolder,
    experiment: Experiment,
    cell: CellConfig,
    seed: int,
    truth: Truth,
    *,
    failure: Failure | None = None,
    unfinished: int | None = None,
    diverged: bool = False,
    superseded: bool = False,
) -> None:
    """One run's files."""
    run = experiment.run(cell.cell, seed)
    fingerprint = run.run_fingerprint
    steps = cell.training.total_steps if unfinished is None else unfinished
    interval = cell.training.checkpoints.interval
    folder.path.mkdir(parents=True, exist_ok=True)
    # the text of `run.to_yaml()`, by libyaml, which is several times as fast
    values = run.model_dump(mode="json")
    folder.config.write_text(yaml.dump(values, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True))

    shared = np.random.default_rng(seed).normal() * truth.seed_sd
    own = np.random.default_rng([seed, zlib.crc32(cell.cell.encode())])
    factor = (1 + shared) * (1 + own.normal() * truth.run_sd)
    per_step = cell.training.tokens_per_step
    tokens = np.arange(1, steps + 1) * per_step
    names = {cell.precision.recipe, cell.ablation or "", cell.cell}
    expected = truth.loss(cell.architecture, names, tokens) * factor
    expected *= 1 + truth.decay_worth * share_of_peak(cell.training, np.arange(1, steps + 1))
    seconds = truth.step_seconds.get(cell.architecture, 1.0) * truth.precision_seconds.get(cell.precision.recipe, 1.0)

    tries = [(1, cell.begins_after, failure.step, failure.reason)] if failure else []
    resumed = max(failure.step // interval * interval if failure else 0, cell.begins_after)
    ending = "diverged" if diverged else "completed"
    tries.append((len(tries) + 1, resumed, steps, ending if unfinished is None else None))  # type: ignore[arg-type]
    attempts, lines = [], []
    counted = sizes(cell)
    start = BEGIN + timedelta(seconds=int(own.integers(0, 10**6)))
    if superseded:
        hours = timedelta(hours=1)
        earlier = folder.superseded / ("f" * 12)
        earlier.mkdir(parents=True)
        old = _attempt(1, start, start + hours, 0, 5, "cancelled", "f" * 64, experiment, cell)
        (earlier / folder.attempts.name).write_text(old.model_dump_json() + "\n")
        start += 2 * hours
    for number, first, last, reason in tries:
        noise = own.normal(size=last) * truth.step_sd
        at = start.timestamp() + truth.startup_seconds
        for step in range(first + 1, last + 1):
            at += seconds
            loss = float(expected[step - 1])
            lines += _lines(cell, counted["flops_per_token"], step, at, number, loss, noise[step - 1], seconds)
        end = datetime.fromtimestamp(at, UTC)
        ended = end if reason else None
        attempts.append(_attempt(number, start, ended, first, last, reason, fingerprint, experiment, cell))
        start = end + timedelta(seconds=60)
    folder.metrics.write_text("".join(line.model_dump_json(exclude_none=True) + "\n" for line in lines))
    folder.attempts.write_text("".join(attempt.model_dump_json() + "\n" for attempt in attempts))
    _write_json(folder.provenance, _provenance(experiment, cell))
    if unfinished is not None:
        return
    if cell.model.experts:
        write_table(folder.routing, routing(cell, truth.specialisation, own), "routing")
    final = float(expected[-1])
    by_step = {line.step: line for line in lines if line.step_seconds}  # of a step done again the last counts
    last = [one.loss for step, one in by_step.items() if step > cell.training.total_steps * 0.9 and one.loss]
    result = Result(
        experiment=experiment.name,
        cell=cell.cell,
        architecture=cell.architecture,
        precision=cell.precision.recipe,
        ablation=cell.ablation,
        seed=seed,
        run_fingerprint=fingerprint,
        status="diverged" if diverged else "completed",
        steps=steps,
        tokens=steps * per_step,
        training_loss=None if diverged else sum(last) / len(last),
        validation_loss=None if diverged else final,
        validation_bits_per_byte=None if diverged else final / np.log(2),
        validation_loss_by_domain={} if diverged else dict.fromkeys(DOMAINS, final),
        **counted,
        training_seconds=sum(line.step_seconds or 0.0 for line in by_step.values()),
        emulated=experiment.device.kind == "cpu" and cell.precision.recipe != "bf16",
        device_kind=_device_kind(experiment),
        device_count=cell.parallelism.world_size,
        metrics_sha256=sha256(folder.metrics),
        files_sha256=hashes(folder),
        parameters_sha256=hashlib.sha256(f"{cell.cell} {seed}".encode()).hexdigest(),
        data_manifest_sha256=MANIFEST,
    )
    _write_json(folder.result, result)


def hashes(folder: RunFolder) -> dict[str, str]:
    """Of the files that a result vouches for."""
    files = (folder.attempts, folder.provenance, folder.routing)
    return {path.name: sha256(path) for path in files if path.exists()}


def sizes(cell: CellConfig) -> dict[str, Any]:
    """Parameters and FLOPs, as the trainer writes them."""
    total, active, flops = (
        matched_quantity(cell.model, by, cell.training.sequence_length)
        for by in ("total_parameters", "active_parameters", "flops_per_token")
    )
    return {"total_parameters": int(total), "active_parameters": int(active), "flops_per_token": flops}


def routing(cell: CellConfig, specialisation: float, generator: np.random.Generator) -> pd.DataFrame:
    """Tokens by sequence, layer and expert: a domain prefers its own experts with probability `specialisation`."""
    experts = cell.model.experts
    assert experts is not None
    sequences, length = cell.training.evaluation.final_sequences, cell.training.sequence_length
    rows = []
    for sequence in range(sequences):
        domain = sequence % len(DOMAINS)
        own = np.arange(experts.count) % len(DOMAINS) == domain
        chance = (1 - specialisation) / experts.count + specialisation * own / own.sum()
        for layer in range(cell.model.dense_layers, cell.model.layers):
            drawn = generator.multinomial(length * experts.top_k, generator.dirichlet(200 * chance + 1e-3))
            rows += [(sequence, DOMAINS[domain], layer, expert, int(count)) for expert, count in enumerate(drawn)]
    return pd.DataFrame(rows, columns=["sequence", "domain", "layer", "expert", "tokens"])


def share_of_peak(training: Any, step: Any) -> Any:
    """The learning rate over its peak, without warm-up: it falls to zero, or stays."""
    if training.schedule.decay == "wsd":
        begins = training.decay_begins_after(training.total_steps)
        return 1 - np.maximum(step - begins, 0) / (training.total_steps - begins)
    return 1 - step / training.total_steps if training.schedule.decay == "linear" else 1 + 0 * step


def _lines(
    cell: CellConfig, flops_per_token: float, step: int, at: float, attempt: int, loss: float, noise: float,
    seconds: float,
) -> list[MetricsRecord]:  # fmt: skip
    model: Any = cell.model
    training, per_step = cell.training, cell.training.tokens_per_step
    fp8 = cell.precision.recipe != "bf16"
    logged = step % training.logging.expert_load_interval == 0 and model.experts
    precise = fp8 and training.logging.precision_interval and step % training.logging.precision_interval == 0
    common: dict[str, Any] = {"step": step, "tokens": step * per_step, "time": at, "attempt": attempt}
    lines = [
        MetricsRecord(
            **common,
            loss=loss * (1 + noise),
            aux_loss=0.01 if model.experts else None,
            grad_norm=1.0 + abs(noise),
            learning_rate=1e-3 * share_of_peak(training, step),
            step_seconds=seconds,
            tokens_per_second=per_step / seconds,
            model_tflops=flops_per_token * per_step / seconds / 1e12,
            memory_bytes=2**30,
            expert_load=[[1 / model.experts.count] * model.experts.count] * model.moe_layers if logged else None,
            fp8_underflow={"input": 1e-3, "weight": 1e-4, "gradient": 1e-2} if precise else None,
            fp8_overflow={"input": 0.0, "weight": 0.0, "gradient": 0.0} if precise else None,
            fp8_amax={"input": 9.0, "weight": 0.3, "gradient": 1e-3} if precise else None,
            fp8_product_error={"forward": 0.03, "input_gradient": 0.04, "weight_gradient": 0.04} if precise else None,
        )
    ]
    if step % training.evaluation.interval == 0 or step == training.total_steps:
        lines.append(
            MetricsRecord(
                **common,
                validation_loss=loss,
                validation_bits_per_byte=loss / np.log(2),
                validation_loss_by_domain=dict.fromkeys(DOMAINS, loss),
                final_validation_loss=loss if step == training.total_steps else None,
                final_validation_bits_per_byte=loss / np.log(2) if step == training.total_steps else None,
                final_validation_loss_by_domain=dict.fromkeys(DOMAINS, loss) if step == training.total_steps else None,
            )
        )
    return lines


def _attempt(
    number: int, start: datetime, end: datetime | None, first: int, last: int, reason: str | None, fingerprint: str,
    experiment: Experiment, cell: CellConfig,
) -> AttemptRecord:  # fmt: skip
    return AttemptRecord.model_validate(
        {
            "attempt": number, "start": start, "end": end, "host": "node0", "nodes": ["node0"],
            "device_kind": _device_kind(experiment), "device_count": cell.parallelism.world_size,
            "exit_reason": reason, "first_step": first, "last_step": last if reason else None,
            "run_fingerprint": fingerprint,
        }
    )  # fmt: skip


def _device_kind(experiment: Experiment) -> str:
    return "cpu" if experiment.device.kind == "cpu" else experiment.device.name


def _provenance(experiment: Experiment, cell: CellConfig) -> Provenance:
    return Provenance(
        octavo_version="0.1.0",
        git_commit="0" * 40,
        git_dirty=False,
        image_digest=None,
        python="3.11.2",
        packages={"torch": "2.13.0", "megatron-core": "0.16.1"},
        lock_sha256=None,
        hardware={"cpu_model": "synthetic", "cores": 2, "memory_gib": 8.0},
        threads=1,
        environment={},
        data_manifest_sha256=MANIFEST,
        precision_built={cell.precision.recipe: 8},
        emulated=experiment.device.kind == "cpu" and cell.precision.recipe != "bf16",
        deterministic=True,
    )


def _write_json(path: Path, record: Any) -> None:
    path.write_text(json.dumps(record.model_dump(mode="json"), indent=2) + "\n")

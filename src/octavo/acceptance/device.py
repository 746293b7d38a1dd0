"""What one device's task measures: products by Transformer Engine's layers, messages to other devices, and its state.

It is started like a rank of a run, on every device at once: devices of a node share power and cooling, and are to be
measured as they will train. Times are CUDA events', the median over repeated steps. This has not run on a GPU: in tests
all of it runs with a stand-in that computes on the CPU, whose times say nothing and are not taken.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from octavo.cluster.node import device_state, first_line, where_computed
from octavo.errors import OctavoError
from octavo.files import write_json
from octavo.precision.config import Precision, RecipeName
from octavo.records import DeviceMeasures, DeviceState, MeasuredMessage, MeasuredProduct
from octavo.training.launch import Process, find_process

PRODUCT_SECONDS = 1.0
"""For each recipe and shape: long enough for clocks to settle under the load."""
MESSAGE_SECONDS = 3.0
REPEATS = 10
"""Steps between two events: launching one must not count."""
MEETING_SECONDS = 120


@dataclass(frozen=True)
class Shapes:
    """(matrices, rows of each, inner, columns) of products, and bytes of a message."""

    products: tuple[tuple[int, int, int, int], ...]
    message_bytes: int


WHOLE = Shapes(
    # dense: square, a feed-forward of 8 B parameters, a small model's; grouped: few large experts, and node-moe's
    (
        (1, 8192, 8192, 8192),
        (1, 8192, 4096, 14336),
        (1, 8192, 2048, 2048),
        (8, 2048, 4096, 4096),
        (64, 384, 2048, 1024),
    ),
    256 << 20,
)
SMALL = Shapes(((1, 128, 128, 128), (2, 128, 128, 128)), 1 << 20)
"""On the stand-in."""


def measure_here(recipes: list[RecipeName], folder: Path, devices: int) -> None:
    """Measure this task's device; what was found is written into `folder`, a file for each task."""
    process = find_process(devices)
    if process is None:
        raise OctavoError("this is no rank", where="octavo accept-device", fix="start `octavo accept`")
    import torch

    torch.cuda.set_device(process.local_rank % torch.cuda.device_count())
    stand_in = where_computed(torch) != "cuda"
    clock = None if stand_in else Clock(torch)
    shapes = SMALL if stand_in else WHOLE
    products = [_product(torch, clock, recipe, *shape) for recipe in recipes for shape in shapes.products]
    record = DeviceMeasures(
        node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        rank=process.rank,
        device=torch.cuda.get_device_name(),
        stand_in=stand_in,
        products=products,
        state=_state(torch),  # right after work
        messages=list(_messages(torch, clock, process, shapes.message_bytes)) if devices > 1 else [],
    )
    write_json(folder / f"rank-{process.rank}.json", record.model_dump(mode="json"))


class Clock:
    """Seconds of a step on the GPU."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def seconds(self, step: Callable[[], Any], repeats: int) -> float:
        """Of one step: the mean over `repeats` of them between two events."""
        cuda = self._torch.cuda
        begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(repeats):
            step()
        end.record()
        cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats

    def lasting(self, step: Callable[[], Any], seconds: float) -> float:
        """The median of one step's time while so many seconds pass."""
        end, times = time.monotonic() + seconds, [self.seconds(step, REPEATS)]
        while time.monotonic() < end:
            times.append(self.seconds(step, REPEATS))
        return median(times)


def _state(torch: Any) -> DeviceState | None:
    try:
        return device_state(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid))
    except Exception:  # whatever a missing library or driver raises: without NVML, too, a GPU can train
        return None


# --- products ---------------------------------------------------------------------------------------------------------


def _product(
    torch: Any, clock: Clock | None, recipe: RecipeName, matrices: int, rows: int, inner: int, columns: int
) -> MeasuredProduct:
    """One layer's three passes. What goes wrong is what was found: the other products are measured all the same."""
    tflops, error = None, None
    try:
        step = _layer_step(torch, recipe, matrices, rows, inner, columns)
        step()  # kernels are chosen, memory is taken
        if clock:
            tflops = 3 * 2 * matrices * rows * inner * columns / clock.lasting(step, PRODUCT_SECONDS) / 1e12
    except Exception as raised:
        error = first_line(raised)
    return MeasuredProduct(
        recipe=recipe, matrices=matrices, rows=rows, inner=inner, columns=columns, tflops=tflops, error=error
    )


def _layer_step(
    torch: Any, recipe: RecipeName, matrices: int, rows: int, inner: int, columns: int
) -> Callable[[], None]:
    """Forward and backward of Transformer Engine's Linear, or GroupedLinear, as Megatron-Core builds them."""
    import transformer_engine.pytorch as te  # type: ignore[import-not-found]

    options = {"bias": False, "params_dtype": torch.bfloat16, "device": "cuda"}
    shared = {"in_features": inner, "out_features": columns, **options}
    layer = te.Linear(**shared) if matrices == 1 else te.GroupedLinear(matrices, **shared)
    x = torch.randn(matrices * rows, inner, device="cuda", dtype=torch.bfloat16).requires_grad_()
    gradient = torch.randn(matrices * rows, columns, device="cuda", dtype=torch.bfloat16)
    arguments = (x,) if matrices == 1 else (x, [rows] * matrices)
    quantising = _engine_recipe(recipe)

    def step() -> None:
        with te.fp8_autocast(enabled=quantising is not None, fp8_recipe=quantising):
            y = layer(*arguments)
        y.backward(gradient)
        x.grad = None
        layer.zero_grad(set_to_none=True)

    return step


def _engine_recipe(recipe: RecipeName) -> Any:
    """Transformer Engine's recipe, as Megatron-Core makes it of what runs tell it; None: BF16."""
    from megatron.core.fp4_utils import get_fp4_recipe
    from megatron.core.fp8_utils import get_fp8_recipe
    from megatron.core.transformer.transformer_config import TransformerConfig

    from octavo.precision.megatron import transformer_config_options

    options = transformer_config_options(Precision(recipe=recipe), on_gpu=True)
    if not options:
        return None
    config = TransformerConfig(num_layers=1, hidden_size=128, num_attention_heads=1, **options)
    return get_fp4_recipe(config) if "fp4" in options else get_fp8_recipe(config)


# --- messages ---------------------------------------------------------------------------------------------------------


def _messages(torch: Any, clock: Clock | None, process: Process, size: int) -> Iterator[MeasuredMessage]:
    """All-reduce, all-to-all, and every device to its neighbour, over all devices."""
    distributed, ranks = torch.distributed, process.world_size
    distributed.init_process_group(
        "nccl",
        init_method=f"tcp://{process.address}:{process.port}",
        rank=process.rank,
        world_size=ranks,
        timeout=timedelta(seconds=MEETING_SECONDS),
    )
    whole = size // 4 // ranks * ranks
    values, received = (torch.zeros(whole, device="cuda") for _ in range(2))
    after, before = (process.rank + 1) % ranks, (process.rank - 1) % ranks

    def neighbours() -> None:
        sent = distributed.P2POp(distributed.isend, values, after)
        for request in distributed.batch_isend_irecv([sent, distributed.P2POp(distributed.irecv, received, before)]):
            request.wait()

    # bytes that leave a device over those of its buffer: twice a ring's share, the others' parts, all of it
    share = (ranks - 1) / ranks
    steps: dict[Any, tuple[Callable[[], Any], float]] = {
        "all-reduce": (lambda: distributed.all_reduce(values), 2 * share),
        "all-to-all": (lambda: distributed.all_to_all_single(received, values), share),
        "point-to-point": (neighbours, 1.0),
    }
    for kind, (step, sent) in steps.items():
        rate, error = None, None
        try:
            step()
            if clock:
                # as often on every rank, or they would wait for each other for ever
                first = torch.tensor(clock.seconds(step, REPEATS), device="cuda")
                distributed.all_reduce(first, distributed.ReduceOp.MAX)
                rounds = max(1, int(MESSAGE_SECONDS / (REPEATS * first.item())))
                rate = sent * values.nbytes / median(clock.seconds(step, REPEATS) for _ in range(rounds)) / 1e9
        except Exception as raised:  # NCCL's and the network's errors are what was found
            error = first_line(raised)
        yield MeasuredMessage(kind=kind, ranks=ranks, bytes=values.nbytes, gb_per_second=rate, error=error)
    distributed.destroy_process_group()

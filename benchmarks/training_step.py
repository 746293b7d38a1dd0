"""One training step of Octavo against the same shapes elsewhere, on one thread, side by side in one process.

    python benchmarks/training_step.py [rounds]

Peers: a plain PyTorch transformer (SDPA, fused projections), Hugging Face's Llama and Qwen3-MoE; each in FP32 and in
BF16 (parameters and AdamW state too, which is less work than BF16 with FP32 main parameters), the faster of the two
counts. A step is forward, loss, backward, clipping and fused AdamW on 8 sequences of 128 tokens. The candidates take
turns, and processor time is counted, so that a busy machine falsifies little; printed are medians and their ratios with
the bars they are held to. Whole steps in every emulated recipe, and steps whose numbers are looked at, are held against
the BF16 step. Needs the data set of the quickstart (`octavo data quickstart`), and the extra `peers` for the peers.
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from octavo.cpu.backend import install

install()

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.experiment.load import load_experiment
from octavo.layout import RunFolder
from octavo.precision.config import Precision, RecipeName
from octavo.precision.diagnostics import diagnose
from octavo.training.launch import Process
from octavo.training.process import set_up_process
from octavo.training.trainer import _Trainer

BATCH, LENGTH, VOCABULARY, LAYERS, HIDDEN, HEADS, WIDTH = 8, 128, 2048, 3, 96, 3, 288
EXPERTS, TOP_K, EXPERT_WIDTH = 16, 4, 72
Step = Callable[[], None]
RECIPE_BARS: dict[RecipeName, float] = {
    "fp8_tensorwise": 1.3,
    "fp8_blockwise": 1.3,
    "fp8_delayed": 1.5,
    "fp8_mxfp8": 1.5,
}
EXAMINED: tuple[RecipeName, ...] = ("fp8_tensorwise", "fp8_blockwise")
"""Recipes whose steps are measured with diagnostics too."""


def octavo_steps(recipes: list[RecipeName]) -> dict[str, Step]:
    """`dense-<recipe>` and `moe-<recipe>` -> the quickstart's training step in that recipe, data included."""
    experiment, place = load_experiment("quickstart"), Process(0, 1, 0)
    set_up_process(experiment.run("dense-bf16", 1), place)
    steps = {}
    for model in ("dense", "moe"):
        for recipe in recipes:
            run = experiment.run(f"{model}-bf16", 1).model_copy(update={"precision": Precision(recipe=recipe)})
            trainer = _Trainer(run, RunFolder(Path(tempfile.mkdtemp(), "runs", run.cell, "seed-1")), place)
            trainer.folder.path.mkdir(parents=True)
            trainer._build()
            step = steps[f"{model}-{recipe}"] = _stepping(trainer)
            if recipe in EXAMINED:
                steps[f"{model}-{recipe}, examined"] = _examined(step)
    return steps


def _stepping(trainer: Any) -> Step:
    def step() -> None:
        trainer.done += 1
        trainer.stepper.step(trainer.done, trainer.sequences, signalled=False)

    return step


def _examined(step: Step) -> Step:
    """The same step with its FP8 numbers looked at."""

    def examined() -> None:
        with diagnose() as found:
            step()
        found.fields()

    return examined


class PlainTransformer(nn.Module):
    """RMSNorm, RoPE, SwiGLU and scaled_dot_product_attention, as few operators as torch allows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(VOCABULARY, HIDDEN), nn.RMSNorm(HIDDEN)
        self.blocks = nn.ModuleList(_Block() for _ in range(LAYERS))
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        size = HIDDEN // HEADS
        angles = torch.outer(torch.arange(LENGTH), 10_000 ** -(torch.arange(0, size, 2) / size)).repeat(1, 2)
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [batch, length] -> logits [batch, length, vocabulary]."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cosine, self.sine)
        return self.head(self.norm(x))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(HIDDEN), nn.RMSNorm(HIDDEN)
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False), nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.up, self.down = nn.Linear(HIDDEN, 2 * WIDTH, bias=False), nn.Linear(WIDTH, HIDDEN, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        q, k = (t * cosine + torch.cat((-t.chunk(2, -1)[1], t.chunk(2, -1)[0]), -1) * sine for t in heads[:2])
        attended = functional.scaled_dot_product_attention(q, k, heads[2], is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, HIDDEN))
        gate, up = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * up)


def peer_steps() -> dict[str, Step]:
    """Peer -> its training step on random tokens; none if they are not installed."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM  # pyright: ignore[reportMissingImports]  # extra `peers`
    except ImportError as error:
        print(f"peers: not installed ({error})")
        return {}

    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
        "max_position_embeddings": LENGTH,
        "tie_word_embeddings": False,
        "attn_implementation": "sdpa",
        "use_cache": False,
    }
    experts = {"num_experts": EXPERTS, "num_experts_per_tok": TOP_K, "moe_intermediate_size": EXPERT_WIDTH}
    makers: dict[str, Callable[[], nn.Module]] = {
        "PyTorch": PlainTransformer,
        "HF Llama": lambda: LlamaForCausalLM(LlamaConfig(intermediate_size=WIDTH, **shape)),
        "HF Qwen3-MoE": lambda: Qwen3MoeForCausalLM(
            Qwen3MoeConfig(output_router_logits=True, router_aux_loss_coef=0.01, **experts, **shape)
        ),
    }
    steps = {}
    for name, make in makers.items():
        for dtype in (torch.float32, torch.bfloat16):
            steps[f"{name} {'fp32' if dtype is torch.float32 else 'bf16'}"] = _peer_step(make().to(dtype).train())
    return steps


def _peer_step(model: nn.Module) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))

    def step() -> None:
        if isinstance(model, PlainTransformer):
            logits = model(tokens[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        else:
            loss = model(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step


def measure(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median milliseconds of processor time of each step; the candidates take turns."""
    for step in steps.values():
        for _ in range(3):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.process_time()
            step()
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(values) * 1e3 for name, values in seconds.items()}


def main() -> int:
    """Print medians and ratios; 1 if a bar is missed."""
    steps = octavo_steps(["bf16", *RECIPE_BARS]) | peer_steps()
    times = measure(steps, int(sys.argv[1]) if len(sys.argv) > 1 else 30)
    for name, milliseconds in times.items():
        print(f"{name:32} {milliseconds:7.1f} ms  {BATCH * LENGTH / milliseconds * 1e3:9,.0f} tokens/s")
    checks = [("moe step over dense step", times["moe-bf16"] / times["dense-bf16"], "", 0.0)]
    for model, peers, bar in (("dense", ("PyTorch", "HF Llama"), 1.0), ("moe", ("HF Qwen3",), 1.5)):
        if fastest := min((value for name, value in times.items() if name.startswith(peers)), default=None):
            checks.append((f"{model}: tokens/s over the fastest peer's", fastest / times[f"{model}-bf16"], ">=", bar))
        for recipe, most in RECIPE_BARS.items():
            step = times[f"{model}-{recipe}"]
            checks.append((f"{model}: {recipe} step over BF16 step", step / times[f"{model}-bf16"], "<=", most))
            if recipe in EXAMINED:
                ratio = times[f"{model}-{recipe}, examined"] / step
                checks.append((f"{model}: {recipe} examined step over the same not examined", ratio, "", 0.0))
    missed = 0
    for what, ratio, sense, bar in checks:
        met = not sense or (ratio >= bar if sense == ">=" else ratio <= bar)
        missed += not met
        print(f"{what:62} {ratio:5.2f}" + (f"  (bar {sense} {bar}: {'met' if met else 'MISSED'})" if sense else ""))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

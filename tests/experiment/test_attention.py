"""Where deterministic mode has no fused attention, `octavo check` and the plan say so.

The cases are those of Transformer Engine 2.20: `get_attention_backend` (below 9.0, softmax_type) and `fused_attn.cpp`
(from 10 on: cuDNN 9.18.1; 12.0: never).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from octavo.cli import app
from octavo.experiment.attention import unfused_attention, unfused_cells
from octavo.experiment.run import Experiment


@pytest.mark.parametrize(
    ("capability", "cudnn", "deterministic", "fused"),
    [
        ("8.0", (9, 24, 0), True, False),
        ("8.0", (9, 24, 0), False, True),
        ("8.9", (9, 24, 0), True, False),
        ("9.0", (9, 1, 0), True, True),
        ("10.0", (9, 18, 0), True, False),
        ("10.0", (9, 18, 0), False, True),
        ("10.0", (9, 18, 1), True, True),
        ("10.3", (9, 24, 0), True, True),
        ("12.0", (9, 24, 0), True, False),
        ("12.0", (9, 24, 0), False, True),
        ("12.0", (9, 18, 0), False, False),
    ],
)
def test_what_is_fused(
    load: Callable[..., Experiment], capability: str, cudnn: tuple[int, ...], deterministic: bool, fused: bool
) -> None:
    changes = {"training.deterministic": deterministic, "precisions": ["bf16"]}
    experiment = load(changes, device={"compute_capability": capability})
    said = unfused_attention(experiment.cells["dense-bf16"], experiment.device, cudnn)
    assert (said is None) == fused
    assert said is None or ("cuDNN 9.18.0" in said) == (cudnn == (9, 18, 0))


def test_learned_sinks_are_not_fused_in_a_fixed_order(load: Callable[..., Experiment]) -> None:
    experiment = load({"models.dense.attention.sinks": True, "precisions": ["bf16"]})
    (said,) = unfused_cells(experiment)
    assert said.startswith("dense-bf16: Transformer Engine has no fused attention in deterministic mode with learned")


def test_check_says_it_once(load: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("words " * 200_000)
    (tmp_path / "text" / "b.txt").write_text("words " * 200_000)
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    source = {"kind": "files", "path": "text", "held_out": ["a.txt"]}
    load({"data.sources": [source], "precisions": ["bf16"]}, device={"compute_capability": "12.0"})
    checked = CliRunner().invoke(app, ["check", "small"])
    assert checked.exit_code == 0
    warnings = [line for line in checked.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: dense-bf16, moe-bf16, moe-bf16+shared: Transformer Engine has no fused")
    assert "training.deterministic: false" in warnings[0]

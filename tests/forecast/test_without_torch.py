"""What an experiment will cost can be asked on a machine without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
sys.modules["torch"] = sys.modules["megatron"] = None  # an import of either fails
from typer.testing import CliRunner
from octavo.cli import app
for line in sys.argv[1:]:
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == 0, (line, done.exception)
"""


def test_the_verbs_of_the_forecast(tmp_path: Path) -> None:
    verbs = [
        f"plan {tmp_path}/results/h100-node --json",
        "models --json",
        "forecast --model llama-3.1-8b --gpu h100 --n-gpus 8 --precision fp8_tensorwise --seq-length 8192 --gbs 128",
        "match node-dense",
        "scale results/deepseek-v3 --cell moe-fp8_blockwise --to deepseek-v3",
        "published",
    ]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *verbs], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "h100-node" / "plan.pdf").read_bytes().startswith(b"%PDF")

"""What a training process asks of its machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import run_alone

pytest.importorskip("megatron.core")
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
from octavo.cpu.backend import install
install()
import torch
from octavo.training.process import HUGE_PAGES, keep_memory
keep_memory()
kept = torch.ones(HUGE_PAGES // 8)
print(kept[kept.numel() // 2 :].data_ptr())
print(open("/proc/self/smaps").read())
"""


@pytest.mark.skipif(not HUGE.exists() or "[never]" in HUGE.read_text(), reason="Linux has no huge pages to give")
def test_what_steps_use_may_be_huge_pages() -> None:
    """The mapping that the middle of a tensor of 256 MiB lies in is marked so (`hg`, proc_pid_smaps(5))."""
    place, _, maps = run_alone(PROGRAM).partition("\n")
    for found in re.finditer(r"(?m)^([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags: (.*?)$", maps, re.DOTALL):
        start, end, flags = int(found[1], 16), int(found[2], 16), found[3].split()
        if start <= int(place) < end:
            assert "hg" in flags
            return
    pytest.fail("the tensor lies in no mapping")

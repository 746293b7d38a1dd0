"""Starting `octavo` as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def octavo(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A verb in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "octavo", *arguments],
        cwd=root,
        env={**os.environ, "OCTAVO_ROOT": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )

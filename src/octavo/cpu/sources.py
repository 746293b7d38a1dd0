"""The C files of this package, how they are compiled, and the hash that tells a library of them from any other.

setup.py compiles them and `octavo.cpu.library` loads the result; this is all that the two must agree in, so it needs
nothing but Python itself.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent
# Without -ffast-math and with -ffp-contract=off every operation rounds as it is written. The last two, without which
# comparisons and square roots are not vectorised, change no result.
FLAGS = ("-O3", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno")


def digest(folder: Path = FOLDER) -> str:
    """A hash of the flags and of the C files in a folder."""
    files = sorted(folder.glob("*.[ch]"))
    parts = [" ".join(FLAGS).encode(), *(part for file in files for part in (file.name.encode(), file.read_bytes()))]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()

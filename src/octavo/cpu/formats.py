"""Floating-point formats of a byte or less (OCP OFP8 and, for e2m1, OCP MX): what rounding to them needs to know."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One format."""

    name: str
    fraction_bits: int
    smallest_normal: float
    largest: float
    """Larger magnitudes saturate to it."""

    @property
    def overflow(self) -> float:
        """Magnitudes above it would round to more than the largest: half a step further on."""
        return self.largest + 2.0 ** (math.floor(math.log2(self.largest)) - self.fraction_bits - 1)


E4M3 = Format("e4m3", fraction_bits=3, smallest_normal=2.0**-6, largest=448.0)
E5M2 = Format("e5m2", fraction_bits=2, smallest_normal=2.0**-14, largest=57344.0)
E2M1 = Format("e2m1", fraction_bits=1, smallest_normal=1.0, largest=6.0)

"""Octavo: does a mixture-of-experts model trained in FP8 reach the same loss for a fraction of the money?"""

from importlib.metadata import version

__version__ = version("octavo")

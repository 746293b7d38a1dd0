"""The compiled library of this package's C files, and what its functions take.

Installation makes it where there is a C compiler. It is loaded only if the hash that was compiled into it is that of
the C files beside it: after a change of these which could not be compiled, the old library is still there. Without it
torch's operators compute the same functions: rounding to the same bits, all else to within rounding. So a run's
provenance and `octavo doctor` say which it is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_char_p, c_float, c_int32, c_int64, c_uint32, c_void_p
from pathlib import Path
from typing import Any

from octavo.cpu.sources import FOLDER, digest

_POINTER, _SIZE = c_void_p, c_int64
_FORMAT = [c_float, c_float, c_float]
_FUNCTIONS: dict[str, tuple[Any, Sequence[Any]]] = {
    "octavo_sources": (c_char_p, []),
    # kernels.c
    "octavo_rms_norm": (None, [*[_POINTER] * 4, _SIZE, _SIZE, c_float]),
    "octavo_rms_norm_gradient": (None, [*[_POINTER] * 6, _SIZE, _SIZE]),
    "octavo_swiglu": (None, [*[_POINTER] * 3, _SIZE, _SIZE]),
    "octavo_swiglu_gradient": (None, [*[_POINTER] * 5, _SIZE, _SIZE]),
    "octavo_cross_entropy": (None, [*[_POINTER] * 5, _SIZE, _SIZE]),
    "octavo_cross_entropy_gradient": (None, [*[_POINTER] * 6, _SIZE, _SIZE]),
    "octavo_rotate": (None, [*[_POINTER] * 5, *[_SIZE] * 4, c_int32]),
    "octavo_attention_weights": (None, [*[_POINTER] * 2, *[_SIZE] * 3, c_float]),
    "octavo_softmax": (None, [*[_POINTER] * 2, *[_SIZE] * 2]),
    "octavo_softmax_gradient": (None, [*[_POINTER] * 3, *[_SIZE] * 2]),
    "octavo_attention_weights_gradient": (None, [*[_POINTER] * 3, *[_SIZE] * 3, c_float]),
    # lines.c
    "octavo_read_lines": (c_int64, [_POINTER, _SIZE, _SIZE, _POINTER, _POINTER, _SIZE, *[_POINTER] * 5]),
    # products.c
    "octavo_multiply": (c_int32, [*[c_int32] * 4, *[_POINTER] * 5, *[_SIZE] * 3]),
    "octavo_instruction_sets": (c_int32, []),
    # accumulate.c
    "octavo_accumulate": (None, [*[_POINTER] * 4, *[_SIZE] * 4, c_int32, c_uint32, _SIZE]),
    # rounding.c
    "octavo_amax": (None, [_POINTER, _SIZE, _POINTER, _POINTER]),
    "octavo_quantise": (None, [_POINTER, _POINTER, _SIZE, _POINTER, _POINTER, *_FORMAT]),
    "octavo_quantise_rows": (None, [_POINTER, _POINTER, *[_SIZE] * 3, *_FORMAT]),
    "octavo_quantise_blocks": (None, [_POINTER, _POINTER, _SIZE, _POINTER, *[_SIZE] * 3, *_FORMAT, _POINTER, _POINTER]),
}


def open_library(path: Path) -> Any:
    """A library with its functions' types. Raises OSError or AttributeError where it is of another machine or lacks
    one of them."""
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _FUNCTIONS.items():
        getattr(library, name).restype, getattr(library, name).argtypes = result, arguments
    return library


_OTHER = "{} was compiled from other C files than those beside it"


def find_library(folder: Path) -> tuple[Any, str]:
    """The library of the C files in a folder, and '' or, where it is None, why there is none."""
    refused = "the C files were not compiled"
    for path in sorted(folder.glob("_library*.so")):
        try:
            library = open_library(path)
            if library.octavo_sources().decode() == digest(folder):
                return library, ""
            refused = _OTHER.format(path.name)
        except AttributeError:
            refused = _OTHER.format(path.name)
        except OSError as error:
            refused = f"{path.name} cannot be loaded ({error})"
    return None, refused


COMPILED, REFUSED = find_library(FOLDER)
"""The library, and why it is None where it is."""

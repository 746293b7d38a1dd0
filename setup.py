"""What of the package is compiled: the C files of octavo.cpu, into one library. All else is in pyproject.toml."""

import runpy

from setuptools import Extension, setup

sources = runpy.run_path("src/octavo/cpu/sources.py")
setup(
    ext_modules=[
        Extension(
            "octavo.cpu._library",
            sources=sorted(map(str, sources["FOLDER"].glob("*.c"))),
            depends=sorted(map(str, sources["FOLDER"].glob("*.h"))),
            define_macros=[("OCTAVO_SOURCES", f'"{sources["digest"]()}"')],
            extra_compile_args=list(sources["FLAGS"]),
            libraries=["m"],
            optional=True,  # without a C compiler torch's operators do the same, more slowly
        )
    ]
)

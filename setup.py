"""Builds the optional compiled codec; everything else is declared in pyproject.toml.

`optional=True` makes a missing or broken C compiler a message, not a failure: the pure twin takes over and the daemon
says so once at start.
"""

import os

from setuptools import Extension, setup

extensions = []
if os.environ.get("ND_BUILD_CODEC", "1") != "0":
    extensions = [
        Extension(
            "ndagent.wire._codec",
            ["ndagent/wire/_codec.pyx"],
            optional=True,
            extra_compile_args=["-O3", "-fno-strict-aliasing"],
        )
    ]
setup(ext_modules=extensions)

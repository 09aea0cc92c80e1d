# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled twin of framing.py and of the decoder: same calls, same bytes (tests/wire runs both on every vector)."""

include "_framing.pxi"
include "_decode.pxi"

# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled twin of framing.py, the decoder, event_names.py, kafka_records.py, event_frames.py, and flow lines."""

include "_framing.pxi"
include "_decode.pxi"
include "_names.pxi"
include "_kafka.pxi"
include "_frames.pxi"
include "_flows.pxi"

"""Writes conf/ndcollector.reference.yaml (see ndagent/core/reference.py)."""

import sys
from pathlib import Path

from ndagent.core import reference as reference_file
from ndcollector.config import CollectorConfig

REFERENCE = Path(__file__).parent.parent / "conf" / "ndcollector.reference.yaml"
_HEAD = """\
# Every key of ndcollector.yaml, with what may be written there and its default. Copy what you change; a configuration
# needs only an output. How files are read, merged and interpolated: docs/configuration.md.
# Made by `python -m ndcollector.reference`; a test fails when it is stale.
"""


def reference() -> str:
    """The whole file as text."""
    return reference_file.reference(CollectorConfig, _HEAD)


if __name__ == "__main__":
    sys.exit(reference_file.write_or_check(REFERENCE, reference(), program="ndcollector.reference"))

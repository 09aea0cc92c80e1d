"""Writes conf/ndagent.reference.yaml (see core/reference.py)."""

import sys
from pathlib import Path

from ndagent.config import AgentConfig
from ndagent.core import reference as reference_file

REFERENCE = Path(__file__).parent.parent / "conf" / "ndagent.reference.yaml"
_HEAD = """\
# Every key of ndagent.yaml, with what may be written there and its default. Copy what you change; an agent needs only
# an input, here or from a policy. How files are read, merged and interpolated: docs/configuration.md.
# Made by `python -m ndagent.reference`; a test fails when it is stale.
"""


def reference() -> str:
    """The whole file as text."""
    return reference_file.reference(AgentConfig, _HEAD)


if __name__ == "__main__":
    sys.exit(reference_file.write_or_check(REFERENCE, reference(), program="ndagent.reference"))

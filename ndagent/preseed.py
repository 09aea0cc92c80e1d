"""What an agent was to enrol with at its first start: /etc/default/ndagent, which systemd hands it as environment.

Promises: once the agent is enrolled the token's line in the file is a remark; every other byte, owner and mode stay. It
is written over in place and at the same length, by one write: the unit lets the agent write this file and nothing
beside it, so that it could not be replaced. Refuses: reading the settings (systemd does), and failing: a token that
stays is said, with the remedy.
"""

import logging
import os
import re
from pathlib import Path

log = logging.getLogger(__name__)

FILE = Path("/etc/default/ndagent")
TOKEN_VARIABLE = "ND_ENROLL_TOKEN"  # noqa: S105 - a name
_LINE = re.compile(rb"^[ \t]*ND_ENROLL_TOKEN=[^\n]*", re.MULTILINE)
_REMARK, _SHORT_REMARK = b"# The token that stood here is used.", b"# token: used"


def forget_token(file: Path) -> None:
    """Make a remark of each token in the file; without one, or without the file, do nothing."""
    try:
        with file.open("rb") as stream:
            found = list(_LINE.finditer(stream.read()))
        if not found:
            return
        descriptor = os.open(file, os.O_WRONLY)
        try:
            for line in found:
                os.lseek(descriptor, line.start(), os.SEEK_SET)
                os.write(descriptor, _remark(len(line[0])))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning(
            "the token in %s was used and cannot be removed by the agent (%s); remove the line %s=… yourself: whoever "
            "reads it can enrol as long as the token is good", file, error.strerror, TOKEN_VARIABLE,
        )  # fmt: skip
    else:
        log.info("the token in %s was used and is removed", file)


def _remark(length: int) -> bytes:
    return (_REMARK if length >= len(_REMARK) else _SHORT_REMARK).ljust(length)

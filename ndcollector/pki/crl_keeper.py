"""The daemon's care for the built-in CA's revocation list: one past its end refuses every client.

A place that it may not write to is said at the start, not two weeks later, when the list is due.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from ndagent.core import messages
from ndcollector.pki.revocation import refresh_crl_if_due
from ndcollector.pki.store import CA_KEY, PkiError

log = logging.getLogger(__name__)

LOOK_SECONDS = 3600.0
_REMEDY = (
    "every client is refused once it has expired. Give the daemon's user write access to it; a unit with "
    "ProtectSystem=strict needs ReadWritePaths= with it, too (`systemctl edit` it)"
)


async def keep_signed(directory: Callable[[], Path]) -> None:
    """Sign the list anew at half its life, until cancelled; `directory` is asked each time, a reload may change it."""
    said: Path | None = None
    while True:
        place = directory()
        if place != said and (place / CA_KEY).exists() and not os.access(place, os.W_OK):
            said = place
            log.error(
                "the revocation list in %s cannot be signed anew when it is due: %s", place, _REMEDY,
                extra=messages.REVOCATION_LIST_OLD,
            )  # fmt: skip
        try:
            if await asyncio.to_thread(refresh_crl_if_due, place, now=datetime.now(UTC)):
                log.info("revocation list signed anew", extra={"path": str(place / "ca.crl")})
        except (PkiError, OSError) as error:
            log.error(
                "the revocation list in %s is not signed anew (%s): %s", place, error, _REMEDY,
                extra=messages.REVOCATION_LIST_OLD,
            )  # fmt: skip
        await asyncio.sleep(LOOK_SECONDS)

"""The daemon's care for the built-in CA's revocation list: one past its end refuses every client."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from ndagent.core import messages
from ndcollector.pki.revocation import refresh_crl_if_due
from ndcollector.pki.store import PkiError

log = logging.getLogger(__name__)

LOOK_SECONDS = 3600.0


async def keep_signed(directory: Callable[[], Path]) -> None:
    """Sign the list anew at half its life, until cancelled; `directory` is asked each time, a reload may change it."""
    while True:
        place = directory()
        try:
            if await asyncio.to_thread(refresh_crl_if_due, place, now=datetime.now(UTC)):
                log.info("revocation list signed anew", extra={"path": str(place / "ca.crl")})
        except (PkiError, OSError) as error:
            log.error(
                "revocation list not signed anew: %s; every client is refused once it has expired. "
                "Give the daemon's user write access to %s", error, place, extra=messages.REVOCATION_LIST_OLD,
            )
        await asyncio.sleep(LOOK_SECONDS)

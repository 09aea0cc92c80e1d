"""This agent's membership in a fleet while it runs: its identity as it is now, and its renewal before it ends.

Promises: an enrolment or renewal, by whomever (`ndagent enroll` beside a running agent, or this one's own child), is
taken up within LOOK_SECONDS without a restart; renewal begins at two thirds of the certificate's life and is tried
again with jitter until it succeeds; the collectors' CAs are asked for every TRUST_SECONDS, so that a rotation finds it
trusting both in time; with ND_COLLECTOR_URL and ND_ENROLL_TOKEN in the environment an agent that is not
enrolled enrols by itself. What needs a person is an ERROR, once an hour.
Refuses: keys and requests: they are made in a child process (enrolment.py says why).
"""

import asyncio
import logging
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from ndagent.core.backoff import full_jitter
from ndagent.core.log import Throttle
from ndagent.https_client import HttpError, HttpsConnection, Place, Proxy
from ndagent.identity import Identity, IdentityStore, NoIdentity
from ndagent.wire import routes
from ndagent.wire.enrolment import bundle_fingerprint, certificates_of

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
TRUST_SECONDS = 3600.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 900.0
_SAY_EVERY_SECONDS = 3600.0
_DAY_SECONDS = 86400
_CHILD_SECONDS = 180.0
_ASK_SECONDS = 10.0


class Membership:
    """`identity` is None until there is one; `changed` is awaited after each change of it."""

    def __init__(
        self,
        store: IdentityStore,
        *,
        config_path: Path,
        environ: Mapping[str, str],
        clock: Callable[[], float],
        random: Callable[[], float],
        changed: Callable[[], Awaitable[None]],
        proxy: Proxy | None = None,
    ) -> None:
        self.identity: Identity | None = None
        self._store = store
        self._config_path = config_path
        self._environ = environ
        self._clock = clock
        self._random = random
        self._changed = changed
        self._proxy = proxy
        self._context: ssl.SSLContext | None = None
        self._stamp: tuple[int, int] | None = None
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=clock)
        self._attempts = 0
        self._try_at = 0.0
        self._trust_at = 0.0

    @property
    def tls(self) -> ssl.SSLContext:
        """For a new connection to a collector; raises NoIdentity."""
        if self._context is None:
            raise NoIdentity("this agent is not enrolled")
        return self._context

    @property
    def pair(self) -> Path:
        """The file with our key and certificate; raises NoIdentity."""
        if self.identity is None:
            raise NoIdentity("this agent is not enrolled")
        return self._store.directory / self.identity.pair

    def look(self) -> bool:
        """Take up what is stored now; whether that is something new. Touches the disk: a stat, mostly."""
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            identity = self._store.load()
            context = self._store.context(identity)
        except NoIdentity as error:
            if self._throttle.allow("none") is not None:
                log.error("%s; until then events wait in the spool", error)
            return False
        self.identity, self._context = identity, context
        self._attempts, self._try_at = 0, 0.0
        log.info("this is agent %s", identity.agent_id, extra={"certificate_days_left": self.days_left})
        return True

    @property
    def days_left(self) -> int | None:
        """Until the certificate ends; None without one."""
        return None if self.identity is None else int((self.identity.not_after - self._clock()) // _DAY_SECONDS)

    async def run(self) -> None:
        """Keep the identity current, until cancelled."""
        while True:
            if self.look():
                await self._changed()
            if (command := self._due()) is not None and self._clock() >= self._try_at:
                await self._try(command)
            if self.identity is not None and self._clock() >= self._trust_at:
                await self._refresh_trust(self.identity)
            await asyncio.sleep(LOOK_SECONDS)

    async def _refresh_trust(self, identity: Identity) -> None:
        """Take over the CAs that a collector hands out, over a connection that those known until now vouch for."""
        self._trust_at = self._clock() + TRUST_SECONDS * (0.5 + self._random())  # a fleet does not ask in step
        for endpoint in identity.endpoints.https:
            connection = HttpsConnection(
                Place.parse(endpoint), context=self.tls, timeout_seconds=_ASK_SECONDS, proxy=self._proxy
            )
            try:
                answer = await connection.request("GET", routes.CA)
            except HttpError as error:
                log.debug("CA certificates not asked for: %s", error)  # the output says that a collector is away
                continue
            finally:
                await connection.aclose()
            bundle = answer.body.decode("ascii", "replace")
            if answer.status == 200 and (found := certificates_of(bundle)):
                if bundle_fingerprint(found) != identity.trust_bundle:
                    await asyncio.to_thread(self._store.trust, identity, bundle)
                    log.info("the collectors' CAs changed; %d are trusted now", len(found))
                return

    def _due(self) -> list[str] | None:
        """The command that gets what is missing, if something is and it can be got."""
        if self.identity is not None:
            return ["renew"] if self._clock() >= self.identity.renew_after else None
        url, token = self._environ.get("ND_COLLECTOR_URL"), self._environ.get("ND_ENROLL_TOKEN")
        return ["enroll", "--url", url] if url and token else None  # the child takes the token from its environment

    async def _try(self, command: list[str]) -> None:
        code, said = await run_ndagent(*command, "-c", str(self._config_path))
        if code == 0:
            return
        pause = full_jitter(
            self._attempts, initial_seconds=_FIRST_PAUSE_SECONDS, maximum_seconds=_LONGEST_PAUSE_SECONDS,
            random=self._random,
        )  # fmt: skip
        self._attempts += 1
        self._try_at = self._clock() + pause
        if self._throttle.allow(command[0]) is not None:
            urgent = self.days_left is None or self.days_left < 7
            level = logging.ERROR if urgent else logging.WARNING
            log.log(level, "%s failed and is tried again: %s", command[0], said or f"exit status {code}")

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            status = (self._store.directory / "identity.json").stat()
        except OSError:
            return (0, 0)
        return status.st_mtime_ns, status.st_ino


async def run_ndagent(*arguments: str) -> tuple[int, str]:
    """Run this program with other arguments, in a thread (a selector loop on Windows has no subprocesses)."""
    import subprocess  # late: most agents never come here in their first days

    frozen = getattr(sys, "frozen", False)
    program = [sys.executable] if frozen else [sys.executable, "-m", "ndagent"]

    def run() -> tuple[int, str]:
        done = subprocess.run(  # noqa: S603 - our own program, our own words
            [*program, *arguments], capture_output=True, text=True, timeout=_CHILD_SECONDS, check=False
        )
        return done.returncode, done.stderr.strip()[-1000:]

    try:
        return await asyncio.to_thread(run)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)

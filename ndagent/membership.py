"""This agent's membership in a fleet while it runs: its identity as it is now, and its renewal before it ends.

Promises: an enrolment or renewal, by whomever (`ndagent enroll` beside a running agent, or this one's own child), is
taken up within LOOK_SECONDS without a restart; renewal begins at two thirds of the certificate's life and is tried
again with jitter until it succeeds; the collectors' CAs are asked for every TRUST_SECONDS, so that a rotation finds it
trusting both in time, and are stored only if the collector that handed them out is trusted by them; with
ND_COLLECTOR_URL and ND_ENROLL_TOKEN in the environment an agent that is not enrolled enrols by itself, and then
takes the token out of /etc/default/ndagent. What needs a person is an ERROR, once an hour.
Refuses: keys and requests: they are made in a child process (enrolment.py says why).
"""

import asyncio
import logging
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ndagent import preseed
from ndagent.core import messages
from ndagent.core.backoff import full_jitter
from ndagent.core.log import Throttle
from ndagent.https_client import HttpError, HttpsConnection, Place, Proxy
from ndagent.identity import MAX_CA_CHARACTERS, Identity, IdentityStore, NoIdentity
from ndagent.wire import routes
from ndagent.wire.enrolment import bundle_fingerprint, certificates_of

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
TRUST_SECONDS = 3600.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 900.0
_SAY_EVERY_SECONDS = 3600.0
_SHORTEST_REST_SECONDS, _LONGEST_REST_SECONDS = 10.0, 3600.0
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
        monotonic: Callable[[], float],
        random: Callable[[], float],
        changed: Callable[[], Awaitable[None]],
        proxy: Callable[[], Proxy | None] = lambda: None,
        endpoints: Callable[[], Sequence[str]] = tuple,
        preseeded: Path = preseed.FILE,
    ) -> None:
        """`clock` is Unix time, which may jump; `monotonic` never does.

        `endpoints` are collectors' (host:port, HTTPS) that ndagent.yaml names, asked before those of enrolment.
        """
        self.identity: Identity | None = None
        self._store = store
        self._config_path = config_path
        self._environ = environ
        self._clock = clock
        self._monotonic = monotonic
        self._random = random
        self._changed = changed
        self._proxy = proxy
        self._endpoints = endpoints
        self._preseeded = preseeded
        self._context: ssl.SSLContext | None = None
        self._stamp: tuple[int, int] | None = None
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=monotonic)
        self._attempts = 0
        self._try_at = self._trust_at = monotonic()
        self._is_news = False

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
        try:
            identity = self._store.load()
            context = self._store.context(identity)
        except NoIdentity as error:
            if self._throttle.allow("none") is not None:
                log.error("%s; until then events wait in the spool", error, extra=messages.NOT_ENROLLED)
            return False
        self.identity, self._context, self._stamp = identity, context, stamp  # until then: look again, it may be mended
        self._attempts = 0
        if self._environ.get(preseed.TOKEN_VARIABLE):
            preseed.forget_token(self._preseeded)
        log.info(
            "this is agent %s", identity.agent_id,
            extra={**messages.IDENTITY, "certificate_days_left": self.days_left},
        )
        return True

    @property
    def days_left(self) -> int | None:
        """Until the certificate ends; None without one."""
        return None if self.identity is None else int((self.identity.not_after - self._clock()) // _DAY_SECONDS)

    async def run(self) -> None:
        """Keep the identity current, until cancelled."""
        while True:
            self._is_news = self.look() or self._is_news
            if self._is_news:
                await self._changed()
                self._is_news = False
            if (command := self._due()) is not None and self._monotonic() >= self._try_at:
                await self._try(command)
            if self.identity is not None and self._monotonic() >= self._trust_at:
                await self._refresh_trust(self.identity)
            await asyncio.sleep(LOOK_SECONDS)

    async def _refresh_trust(self, identity: Identity) -> None:
        """Take over the CAs that a collector hands out, over a connection that those known until now vouch for."""
        self._trust_at = self._monotonic() + TRUST_SECONDS * (0.5 + self._random())  # a fleet does not ask in step
        for endpoint in dict.fromkeys((*self._endpoints(), *identity.endpoints.https)):
            try:
                found = certificates_of(await self._authorities(endpoint, self.tls))
                if found and bundle_fingerprint(found) == identity.trust_bundle:
                    return
                bundle = "".join(map(ssl.DER_cert_to_PEM_cert, found))
                await self._authorities(endpoint, self._store.context(replace(identity, ca=bundle)))
                if await asyncio.to_thread(self._store.trust, identity.agent_id, bundle):
                    log.info("the collectors' CAs changed; %d are trusted now", len(found))
            except HttpError as error:
                log.debug("CA certificates not taken over: %s", error)  # the output says that a collector is away
            except (NoIdentity, OSError, ValueError) as error:
                if self._throttle.allow("trust") is not None:
                    log.warning("the CA certificates that %s hands out are not taken over: %s", endpoint, error)
            else:
                return

    async def _authorities(self, endpoint: str, context: ssl.SSLContext) -> str:
        """What a collector hands out to somebody who trusts by this context; raises HttpError."""
        place = Place.parse(endpoint)
        connection = HttpsConnection(
            place,
            context=context,
            timeout_seconds=_ASK_SECONDS,
            proxy=self._proxy(),
            max_answer_bytes=MAX_CA_CHARACTERS,
        )
        try:
            answer = await connection.request("GET", routes.CA)
        finally:
            await connection.aclose()
        if answer.status != 200:
            raise HttpError(f"{place} answers {answer.status}")
        return answer.body.decode("ascii", "replace")

    def _due(self) -> list[str] | None:
        """The command that gets what is missing, if something is and it can be got."""
        if self.identity is not None:
            return ["renew"] if self._clock() >= self.identity.renew_after else None
        url, token = self._environ.get("ND_COLLECTOR_URL"), self._environ.get("ND_ENROLL_TOKEN")
        return ["enroll", "--url", url] if url and token else None  # the child takes the token from its environment

    async def _try(self, command: list[str]) -> None:
        code, said = await run_ndagent(*command, "-c", str(self._config_path))
        if code == 0:
            self._try_at = self._monotonic() + self._rest()
            return
        pause = full_jitter(
            self._attempts, initial_seconds=_FIRST_PAUSE_SECONDS, maximum_seconds=_LONGEST_PAUSE_SECONDS,
            random=self._random,
        )  # fmt: skip
        self._attempts += 1
        self._try_at = self._monotonic() + pause
        if self._throttle.allow(command[0]) is not None:
            urgent = self.days_left is None or self.days_left < 7
            level = logging.ERROR if urgent else logging.WARNING
            log.log(level, "%s failed and is tried again: %s", command[0], said or f"exit status {code}")

    def _rest(self) -> float:
        """Seconds in which nothing is renewed again: with a clock far ahead, every certificate is due at once."""
        left = 0.0 if self.identity is None else (self.identity.not_after - self.identity.renew_after) / 4
        return min(max(left, _SHORTEST_REST_SECONDS), _LONGEST_REST_SECONDS)

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
    program = [sys.executable] if frozen else [sys.executable, *_flags(), "-m", "ndagent"]
    try:
        child = await asyncio.to_thread(
            subprocess.Popen, [*program, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
    except OSError as error:
        return 1, str(error)
    try:
        _, said = await asyncio.to_thread(child.communicate, timeout=_CHILD_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        _, said = await asyncio.to_thread(child.communicate)
        return 1, f"not done within {_CHILD_SECONDS:g} s"
    except asyncio.CancelledError:
        child.kill()  # a stop does not wait for a collector; the thread above reaps it
        raise
    return child.returncode, said.strip()[-1000:]


def _flags() -> list[str]:
    """Nothing is written beside installed modules if we were told so: an uninstaller would leave it."""
    return ["-B"] if sys.dont_write_bytecode else []

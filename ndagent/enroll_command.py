"""`ndagent enroll` and `ndagent renew`: get this host's certificate, and the one that follows it.

Exit status 0 done, 1 not done (stderr says why and what to do), 2 wrong usage, 75 not done, but trying again may help
(EX_TEMPFAIL of sysexits.h).
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path

from ndagent.config import AgentConfig, add_config_option, https_endpoints, load, proxy_of
from ndagent.core.process_user import WITH_RIGHTS
from ndagent.core.yaml_file import ConfigError
from ndagent.https_client import Proxy
from ndagent.identity import Identity, IdentityStore, NoIdentity

EX_TEMPFAIL = 75


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `enroll` and `renew`."""
    enroll = commands.add_parser("enroll", help="get this host's certificate from a collector")
    enroll.add_argument("--url", required=True, help="the collector, such as https://collector.example.net:8443")
    enroll.add_argument(
        "--token",
        help="what `ndcollector agents token create` printed; without it ND_ENROLL_TOKEN counts, and `-` reads stdin",
    )
    enroll.set_defaults(handler=_enroll)
    renew = commands.add_parser("renew", help="get the next certificate now; a running agent does so by itself")
    renew.set_defaults(handler=_renew)
    for parser in (enroll, renew):
        add_config_option(parser)
        parser.add_argument("--proxy", help="HTTP proxy that does CONNECT; default: that of outputs.https")


def _enroll(arguments: argparse.Namespace) -> int:
    from ndagent import enrolment  # its libraries cost memory that only these two commands need

    token = arguments.token or os.environ.get("ND_ENROLL_TOKEN", "")
    if token == "-":  # noqa: S105 - not a token: it says where to read one
        token = sys.stdin.readline()
    store, proxy = _surroundings(arguments, _config(arguments))
    return _run(enrolment.enrol(arguments.url, token, store, proxy=proxy), "enrolled as")


def _renew(arguments: argparse.Namespace) -> int:
    from ndagent import enrolment  # as above

    config = _config(arguments)
    store, proxy = _surroundings(arguments, config)
    return _run(enrolment.renew(store, proxy=proxy, endpoints=https_endpoints(config)), "renewed for")


def _run(task: Coroutine[None, None, Identity], done: str) -> int:
    from ndagent.enrolment import EnrolmentFailed

    try:
        identity = asyncio.run(task)
    except NoIdentity as error:
        print(error, file=sys.stderr)
        return 1
    except EnrolmentFailed as error:
        print(error, file=sys.stderr)
        return 1 if error.final else EX_TEMPFAIL
    except OSError as error:
        print(f"{error}; run it {WITH_RIGHTS}", file=sys.stderr)
        return 1
    end = datetime.fromtimestamp(identity.not_after, UTC)
    print(f"{done} agent {identity.agent_id}; the certificate ends {end:%Y-%m-%d} and is renewed before by itself")
    return 0


def _config(arguments: argparse.Namespace) -> AgentConfig:
    """Without a configuration the defaults count."""
    try:
        return load(arguments.config) if Path(arguments.config).exists() else AgentConfig()
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from error


def _surroundings(arguments: argparse.Namespace, config: AgentConfig) -> tuple[IdentityStore, Proxy | None]:
    """Where the identity lies and how to get out."""
    try:
        proxy = Proxy.parse(arguments.proxy) if arguments.proxy else proxy_of(config)
        return IdentityStore(config.state_dir / "identity"), proxy
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error

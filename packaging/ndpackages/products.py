"""The two products, and in what their packages differ."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

HOMEPAGE = "https://neurodefender.example/"


@dataclass(frozen=True)
class Product:
    """One package's worth of program."""

    name: str  # the command, the package, the directories
    summary: str
    description: str
    packages: tuple[str, ...]  # of ours, all of whose modules go in: plugs are imported by name
    modules: tuple[str, ...]  # of others, which plugs import by name
    without: tuple[str, ...]  # what the analysis would take along and the program never imports
    optimize: int  # Python's -O level; 2 leaves out docstrings and assertions, which is memory
    config_mode: int  # of the directory in /etc; its files have it less the x
    needs: tuple[str, ...]  # Debian's names, besides the C library
    recommends: tuple[str, ...]
    has_user: bool  # a user and group of the product's name; else it is root

    @property
    def parser(self) -> Callable[[], object]:
        """Makes the command line's parser."""
        build_parser: Callable[[], object] = import_module(f"{self.name}.__main__").build_parser
        return build_parser


_NEVER = (
    "tkinter", "pydoc", "pydoc_data", "doctest", "lib2to3", "pytest", "setuptools", "pip", "Cython", "IPython",
    "pydantic.v1", "pydantic.mypy",
)  # fmt: skip
_NEVER_IN_AN_AGENT = (
    "aiohttp", "aiobotocore", "botocore", "aiokafka", "uvloop", "rich", "pygments", "watchfiles", "anyio",
    "isal", "bz2", "lzma",  # footprint.py has them absent
)  # fmt: skip
AGENT = Product(
    name="ndagent",
    summary="light log agent: files, journal, audit log and metrics to a collector",
    description=(
        "Reads this host's log files, systemd journal, audit log and metrics, keeps\n"
        "them in a spool on disk until a Neurodefender collector has them on its own,\n"
        "and ships them over MQTT or HTTPS with a client certificate that it enrols\n"
        "for and renews by itself."
    ),
    packages=("ndagent",),
    modules=("psutil", "dns.resolver", "dns.asyncresolver"),
    without=(*_NEVER, *_NEVER_IN_AN_AGENT),
    optimize=2,
    config_mode=0o755,
    needs=("tzdata",),
    recommends=("ca-certificates",),
    has_user=False,
)
COLLECTOR = Product(
    name="ndcollector",
    summary="log collector: syslog over mutual TLS and agents, to Kafka, SIEMs and files",
    description=(
        "Terminates syslog over mutual TLS (RFC 5424, RFC 5425, RFC 3164) and\n"
        "Neurodefender agents (MQTT, HTTPS), writes everything to a durable spool\n"
        "before it acknowledges, and forwards it as Elastic Common Schema events to\n"
        "Kafka, Splunk, Elasticsearch, OTLP, S3, RELP, syslog, HTTPS and files, each\n"
        "with its own cursor, retry, circuit breaker and dead letters."
    ),
    packages=("ndcollector", "ndagent.core", "ndagent.wire"),
    modules=("aiokafka", "aiobotocore.session", "dns.resolver", "dns.asyncresolver", "isal.isal_zlib"),
    without=(*_NEVER, "psutil", "pygments", "markdown_it"),  # rich needs those for what we do not ask of it
    optimize=0,  # `dlq --help` shows a docstring
    config_mode=0o750,
    needs=("adduser", "tzdata"),
    recommends=("ca-certificates",),
    has_user=True,
)
PRODUCTS = (COLLECTOR, AGENT)

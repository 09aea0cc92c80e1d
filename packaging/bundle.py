"""What a package of ours carries along: the distributions that the program needs, as they are installed here.

Promises: `bundled` is the closure of pyproject.toml's dependencies with the extras that the package ships, by the
metadata of what is really installed and the markers of this machine; one that is missing is an error, not left out.
Refuses: what is only here to build or test.
"""

import ssl
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import NamedTuple

from cryptography.hazmat.backends.openssl import backend
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "neurodefender-collector"
EXTRAS = {
    "ndcollector": frozenset({"fast", "kafka", "srv", "s3"}),
    "ndagent": frozenset({"fast", "host-metrics", "srv"}),
}
"""Program → the extras that its package is built with."""


class Bundled(NamedTuple):
    """A distribution, and which others it needs, by canonical name."""

    distribution: Distribution
    needs: frozenset[str]


class Part(NamedTuple):
    """Something in the bundle that pip knows nothing of."""

    name: str
    version: str
    licence: str
    purl: str


def bundled(program: str) -> dict[str, Bundled]:
    """By canonical name, ours first; raises LookupError for one that is not installed."""
    found: dict[str, Bundled] = {}
    wanted = [(PROJECT, EXTRAS[program])]
    extras_seen: dict[str, frozenset[str]] = {}
    while wanted:
        name, extras = wanted.pop()
        extras |= extras_seen.get(name, frozenset())
        if name in found and extras == extras_seen[name]:
            continue
        extras_seen[name] = extras
        try:
            dist = distribution(name)
        except PackageNotFoundError as error:
            extras_here = ",".join(sorted(EXTRAS[program]))
            raise LookupError(f"{name} is not installed; pip install '.[{extras_here}]'") from error
        needs = list(_needs(dist, extras))
        found[name] = Bundled(dist, frozenset(need for need, _ in needs))
        wanted += needs
    return dict(sorted(found.items(), key=lambda item: (item[0] != PROJECT, item[0])))


def _needs(dist: Distribution, extras: frozenset[str]) -> "list[tuple[str, frozenset[str]]]":
    found = []
    for text in dist.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""})):
            name = canonicalize_name(requirement.name)
            if name != PROJECT:  # an extra that is made of others
                found.append((str(name), frozenset(requirement.extras)))
    return found


def other_parts() -> list[Part]:
    """The interpreter and the libraries that are linked into it or into a wheel."""
    python = ".".join(map(str, sys.version_info[:3]))
    linked = backend.openssl_version_text().split()[1]
    own = ssl.OPENSSL_VERSION.split()[1]
    return [
        Part("CPython", python, "PSF-2.0", f"pkg:generic/cpython@{python}"),
        *(
            Part("OpenSSL", version, "Apache-2.0", f"pkg:generic/openssl@{version}")
            for version in sorted({linked, own})
        ),
    ]

"""Writes a package's software bill of materials, CycloneDX 1.6 in JSON: `sbom.py ndcollector > ndcollector.cdx.json`.

Promises: it lists what is installed where it runs (bundle.py), each with version, package URL, declared licence and
what it needs, the interpreter and OpenSSL included; the same environment gives the same bytes. Run it with the
interpreter that the package was built with.
"""

import hashlib
import os
import sys
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import Distribution

from bundle import PROJECT, Bundled, bundled, other_parts
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL


def component(name: str, dist: Distribution, *, kind: ComponentType = ComponentType.LIBRARY) -> Component:
    """A distribution as CycloneDX names it."""
    home = dist.metadata.get("Home-page") or _project_url(dist)
    return Component(
        type=kind,
        name=name,
        version=dist.version,
        bom_ref=f"{name}@{dist.version}",
        purl=PackageURL("pypi", None, name, dist.version),
        description=dist.metadata.get("Summary"),
        licenses=[licence] if (licence := _licence(dist)) else [],
        external_references=[ExternalReference(type=ExternalReferenceType.WEBSITE, url=XsUri(home))] if home else [],
    )


def declared(dist: Distribution) -> str | None:
    """The licence that the distribution names: its expression, its text where that is short, or its classifiers."""
    meta = dist.metadata
    expression = meta.get("License-Expression")
    if expression:
        return str(expression)
    words = str(meta.get("License") or "").strip()
    if words and "\n" not in words and len(words) < 80:
        return words
    names = [line.rpartition(" :: ")[2] for line in meta.get_all("Classifier") or () if line.startswith("License ::")]
    return " AND ".join(names) or None


def _licence(dist: Distribution) -> "License | None":
    text = declared(dist)
    return LicenseFactory().make_from_string(text) if text else None  # type: ignore[return-value]  # or an expression


def _project_url(dist: Distribution) -> str | None:
    urls = [line.partition(", ")[2] for line in dist.metadata.get_all("Project-URL") or ()]
    return urls[0] if urls else None


def bom(program: str) -> Bom:
    """The whole document."""
    parts = bundled(program)
    made = {name: component(name, one.distribution) for name, one in parts.items() if name != PROJECT}
    root = component(program, parts[PROJECT].distribution, kind=ComponentType.APPLICATION)
    found = Bom(components=made.values())
    found.metadata.component = root
    others = [
        Component(type=ComponentType.LIBRARY, name=part.name, version=part.version, bom_ref=part.purl,
                  purl=PackageURL.from_string(part.purl), licenses=[LicenseFactory().make_from_string(part.licence)])
        for part in other_parts()
    ]  # fmt: skip
    found.components.update(others)
    found.register_dependency(root, [*(made[need] for need in parts[PROJECT].needs), *others])
    for name, one in parts.items():
        if name != PROJECT:
            found.register_dependency(made[name], [made[need] for need in one.needs])
    found.metadata.timestamp = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    found.serial_number = _serial(parts.items())
    return found


def _serial(parts: Iterable[tuple[str, Bundled]]) -> uuid.UUID:
    """One for each set of parts: the same bundle is the same document."""
    text = "\n".join(f"{name}=={one.distribution.version}" for name, one in parts)
    return uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=4)


def main() -> None:
    """Print it."""
    print(JsonV1Dot6(bom(sys.argv[1])).output_as_string(indent=2))


if __name__ == "__main__":
    main()

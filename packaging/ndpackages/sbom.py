"""What a package is made of, for machines: a bill of materials in CycloneDX 1.6 (JSON).

Promises: it lists what was frozen, not what happens to be installed: each Python distribution with the SHA-256 of the
lock that it came from, what such a wheel says itself to have linked in (PEP 770: Rust crates, cryptography's own
OpenSSL), and each Debian package of which a file is in the tree, named so that scanners find its security advisories.
The same tree gives the same bytes. Refuses: a distribution that is not in the lock, or not in the version of the lock.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ndpackages.notices import licence

_LOCKED = re.compile(r"^([\w.-]+)==(\S+) --hash=sha256:([0-9a-f]{64})$", re.MULTILINE)
_SPDX = re.compile(r"[A-Za-z0-9.+-]+(?: (?:AND|OR|WITH) [A-Za-z0-9.+-]+)*")

Component = dict[str, Any]


def locked(text: str) -> dict[str, tuple[str, str]]:
    """The lock: canonical name → version and SHA-256."""
    return {str(canonicalize_name(name)): (version, digest) for name, version, digest in _LOCKED.findall(text)}


def bill_of_materials(
    *, program: str, version: str, parts: Iterable[Component], needs: Mapping[str, Iterable[str]], epoch: int
) -> str:
    """The document of a program with these parts; `needs` is by bom-ref. The program needs all of them."""
    components = sorted(parts, key=lambda part: str(part["bom-ref"]))
    references = [part["bom-ref"] for part in components]
    itself = f"{program}@{version}"
    digest = hashlib.sha256(json.dumps([itself, components], sort_keys=True).encode()).digest()
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.UUID(bytes=digest[:16], version=4).urn,
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "application", "bom-ref": itself, "name": program, "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
        },
        "components": components,
        "dependencies": [
            {"ref": itself, "dependsOn": references},
            *({"ref": one, "dependsOn": sorted(set(needs.get(one, ())) & set(references))} for one in references),
        ],
    }  # fmt: skip
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def python_parts(found: Iterable[Distribution], lock: Mapping[str, tuple[str, str]]) -> Iterator[Component]:
    """Distributions as components. Raises ValueError for one that the lock does not have as it is."""
    for one in found:
        name = str(canonicalize_name(one.metadata["Name"]))
        version, digest = lock.get(name, ("", ""))
        if version != one.version:
            there = version or "none"
            raise ValueError(f"{name} {one.version} is bundled, and the lock has {there}: make packages-lock")
        part = {
            "type": "library", "bom-ref": reference(one), "name": name, "version": version,
            "purl": f"pkg:pypi/{name}@{quote(version)}", "licenses": _licences(licence(one)),
            "hashes": [{"alg": "SHA-256", "content": digest}],
        }  # fmt: skip
        linked = sorted({json.dumps(inner, sort_keys=True) for inner in _linked_in(one)})
        yield part | ({"components": [json.loads(inner) for inner in linked]} if linked else {})


def debian_parts(versions: Iterable[tuple[str, str]], architecture: str) -> Iterator[Component]:
    """Debian packages, names and versions, as components."""
    for name, version in versions:
        purl = f"pkg:deb/debian/{name}@{quote(version)}?arch={architecture}&distro=debian-12"
        words = f"see Debian's copyright file of {name}"
        yield {
            "type": "library", "bom-ref": f"deb:{name}@{version}", "name": name, "version": version, "purl": purl,
            "licenses": _licences(words),
        }  # fmt: skip


def python_needs(found: Iterable[Distribution]) -> dict[str, list[str]]:
    """Which of these distributions each of them needs, by bom-ref; extras are not followed."""
    known = {str(canonicalize_name(one.metadata["Name"])): one for one in found}
    needs: dict[str, list[str]] = {}
    for one in known.values():
        wanted = [Requirement(text) for text in one.requires or ()]
        wanted = [each for each in wanted if not each.marker or each.marker.evaluate({"extra": ""})]
        names = [str(canonicalize_name(each.name)) for each in wanted]
        needs[reference(one)] = [reference(known[name]) for name in names if name in known]
    return needs


def reference(one: Distribution) -> str:
    """A distribution's bom-ref."""
    return f"{canonicalize_name(one.metadata['Name'])}@{one.version}"


def _licences(text: str) -> list[dict[str, Any]]:
    """An SPDX expression as one, other words as a name."""
    is_expression = _SPDX.fullmatch(text) and (" AND " in text or " OR " in text)
    return [{"expression": text}] if is_expression else [{"license": {"name": text}}]


def _linked_in(one: Distribution) -> Iterator[Component]:
    """What its own bills of materials list, in few words and without the paths of whoever built it."""
    for file in one.files or ():
        if ".dist-info/sboms/" not in str(file) or file.suffix != ".json":
            continue
        for part in json.loads(Path(str(one.locate_file(file))).read_text(encoding="utf-8")).get("components", ()):
            kept = {key: part[key] for key in ("type", "name", "version", "licenses", "hashes") if part.get(key)}
            purl = str(part.get("purl", "")).partition("?")[0]
            yield kept | ({"purl": purl} if purl else {})

"""What is bundled, and under which licences: Debian's copyright file, and every licence text in one file beside it.

Promises: each Python distribution and each Debian package of which something is in the tree is named with its version
and licence; its own texts are in the notices. Refuses: to pass over one that says nothing about its licence.
"""

import subprocess
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from ndpackages.freezing import Frozen

_HEAD = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: Neurodefender collection appliance
Comment: The program is frozen with the Python runtime, Python packages and C
 libraries that are listed below. Their licence texts, and Debian's copyright
 files of the C libraries, are in third-party-notices.gz beside this file.

Files: *
Copyright: 2026 the Neurodefender authors
License: Apache-2.0
 On Debian systems the full text of the Apache License 2.0 is in
 /usr/share/common-licenses/Apache-2.0.
"""
_TEXTS = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT", "AUTHORS")


def copyright_file(frozen: Frozen) -> str:
    """For /usr/share/doc/…/copyright. Raises ValueError for a distribution without a licence."""
    python = [
        _paragraph(
            one.metadata["Name"], _holder(one), f"{licence(one)} (version {one.version}; see third-party-notices.gz)"
        )
        for one in distributions(frozen)
    ]
    debian = [
        _paragraph(name, "see third-party-notices.gz", f"As in Debian's package {name} {version}.")
        for name, version in debian_versions(frozen.debian_packages)
    ]
    return "\n".join([_HEAD, *python, *debian])


def notices(frozen: Frozen) -> str:
    """Every text, each under the name and version of what it belongs to."""
    parts = list(python_chapters(distributions(frozen)))
    for name, version in debian_versions(frozen.debian_packages):
        parts.append(_chapter(f"{name} {version} (Debian)", [Path("/usr/share/doc", name, "copyright")]))
    return "\n".join(parts)


def python_chapters(found: Iterable[Distribution]) -> Iterator[str]:
    """A chapter for each distribution."""
    for one in found:
        texts = [Path(str(one.locate_file(file))) for file in one.files or () if _is_text(file.name, str(file))]
        yield _chapter(f"{one.metadata['Name']} {one.version}: {licence(one)}", texts)


def licence(one: Distribution) -> str:
    """In the distribution's own short words. Raises ValueError where it has none."""
    said = _field(one, "License-Expression", "License")
    classifiers = one.metadata.get_all("Classifier") or ()
    classes = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License ::")]
    if classes and (not said or len(said) >= 80 or "\n" in said):
        return ", ".join(classes)
    if said:
        return said.strip().splitlines()[0]
    raise ValueError(f"{one.metadata['Name']} {one.version} names no licence; look at it before it is bundled")


def distributions(frozen: Frozen) -> list[Distribution]:
    """The Python distributions in it, as they are installed here."""
    return [distribution(name) for name in sorted(frozen.distributions, key=str.lower)]


def debian_versions(names: Iterable[str]) -> list[tuple[str, str]]:
    """Each Debian package with the version that is installed here."""
    found = []
    for name in sorted(names):
        command = ["dpkg-query", "-W", "-f", "${Version}\n", name]
        found.append((name, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]))
    return found


def _paragraph(name: str, holder: str, text: str) -> str:
    """A licence's short name must be unique in the file: each is named for its component."""
    return f"Files: lib/{name}/*\nCopyright: {holder}\nLicense: as-{name.replace('_', '-')}\n {text}\n"


def _holder(one: Distribution) -> str:
    said = _field(one, "Author", "Author-email", "Maintainer", "Maintainer-email")
    return " ".join((said or f"the authors of {one.metadata['Name']}").split())


def _field(one: Distribution, *names: str) -> str:
    """The first of these fields that says something."""
    return next((text for name in names for text in one.metadata.get_all(name) or () if text), "")


def _is_text(name: str, path: str) -> bool:
    """By its name, or because the distribution says so by its place (PEP 639)."""
    return ".dist-info/licenses/" in path or (".dist-info/" in path and name.upper().startswith(_TEXTS))


def _chapter(title: str, files: list[Path]) -> str:
    texts = [file.read_text(encoding="utf-8", errors="replace").strip() for file in sorted(files) if file.is_file()]
    body = "\n\n".join(texts) or "(It brings no licence text of its own.)"
    return f"{'=' * 78}\n{title}\n{'=' * 78}\n\n{body}\n"

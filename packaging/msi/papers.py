"""What an msi carries, for people and for machines: licences and a bill of materials, written beside it, to be signed.

Promises: both are about what was staged: every wheel that was unpacked, as its lock has it, and the runtime by the
version that its own library names. The same stage gives the same bytes.
"""

import re
from importlib.metadata import distributions
from pathlib import Path

from ndpackages import notices, sbom

_VERSION = re.compile(rb"\b3\.11\.\d+\b")


def write(stage: Path, target: Path, *, version: str, lock: Path, epoch: int) -> None:
    """NAME.cdx.json and NAME.licences.txt for NAME.msi. Raises ValueError for a wheel that the lock does not have."""
    found = sorted(distributions(path=[str(stage / "lib")]), key=sbom.reference)
    runtime = _runtime(stage / "python")
    text = sbom.bill_of_materials(
        program="ndagent", version=version, needs=sbom.python_needs(found), epoch=epoch,
        parts=[*sbom.python_parts(found, sbom.locked(lock.read_text(encoding="utf-8"))), runtime],
    )  # fmt: skip
    target.with_suffix(".cdx.json").write_text(text, encoding="utf-8")
    python = f"CPython {runtime['version']}\n\n{_licence_of_python(stage / 'python')}\n"
    chapters = "\n".join([python, *notices.python_chapters(found)])
    target.with_suffix(".licences.txt").write_text(chapters, encoding="utf-8")


def _runtime(directory: Path) -> sbom.Component:
    versions = _VERSION.findall((directory / "python311.dll").read_bytes())
    if not versions:
        raise ValueError("python311.dll does not say which version it is")
    version = versions[0].decode()
    return {
        "type": "library", "bom-ref": f"cpython@{version}", "name": "CPython", "version": version,
        "purl": f"pkg:generic/cpython@{version}", "licenses": [{"license": {"id": "PSF-2.0"}}],
    }  # fmt: skip


def _licence_of_python(directory: Path) -> str:
    file = directory / "LICENSE.txt"
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else "PSF-2.0 (no text comes with it)"

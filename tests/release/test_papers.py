"""What goes with a release: a manifest that openssl verifies, a bill of materials, the licences of what is bundled."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from collector_process import ROOT
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

PACKAGING = ROOT / "packaging"
PROGRAMS = ["ndcollector", "ndagent"]


def script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """One of packaging/, as a release runs it."""
    return subprocess.run(
        [sys.executable, PACKAGING / name, *arguments], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1790000000"},
    )  # fmt: skip


def openssl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The tool that whoever gets a release has."""
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=60, check=False)


class TestManifest:
    """packaging/manifest.py"""

    @pytest.fixture
    def key(self, tmp_path: Path) -> Path:
        path = tmp_path / "release.key"
        assert openssl("genpkey", "-algorithm", "ed25519", "-out", path).returncode == 0
        path.chmod(0o600)
        assert openssl("pkey", "-in", path, "-pubout", "-out", tmp_path / "release.pub").returncode == 0
        return path

    @pytest.fixture
    def release(self, tmp_path: Path) -> Path:
        directory = tmp_path / "dist"
        (directory / "papers").mkdir(parents=True)
        (directory / "ndagent_0.1.0_amd64.deb").write_bytes(b"a package")
        (directory / "papers" / "ndagent.cdx.json").write_text("{}")
        return directory

    def verify(self, release: Path) -> bool:
        """The two commands that its head names."""
        sums, signature = release / "SHA256SUMS", release / "SHA256SUMS.sig"
        public = release.parent / "release.pub"
        signed = openssl("pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", sums, "-sigfile", signature)
        checked = subprocess.run(
            ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=release, capture_output=True, check=False
        )
        return signed.returncode == 0 and checked.returncode == 0

    def test_openssl_and_sha256sum_verify_it(self, release: Path, key: Path) -> None:
        """Signed twice, it is the same."""
        assert script("manifest.py", release, "--version", "0.1.0", "--key", key).returncode == 0
        first = (release / "SHA256SUMS.sig").read_bytes()
        assert self.verify(release)
        assert "papers/ndagent.cdx.json" in (release / "SHA256SUMS").read_text()
        assert script("manifest.py", release, "--version", "0.1.0", "--key", key).returncode == 0
        assert (release / "SHA256SUMS.sig").read_bytes() == first

    @pytest.mark.parametrize("what", ["ndagent_0.1.0_amd64.deb", "SHA256SUMS"])
    def test_a_changed_file_is_found(self, release: Path, key: Path, what: str) -> None:
        """The package, or the manifest that says what it should be."""
        script("manifest.py", release, "--version", "0.1.0", "--key", key)
        changed = release / what
        changed.write_bytes(changed.read_bytes().replace(b"a", b"b"))
        assert not self.verify(release)

    def test_a_key_that_others_may_read_signs_nothing(self, release: Path, key: Path) -> None:
        """Nor one of another kind, nor an empty directory."""
        key.chmod(0o640)
        refused = script("manifest.py", release, "--version", "0.1.0", "--key", key)
        assert refused.returncode == 1
        assert "chmod 600" in refused.stderr
        key.chmod(0o600)
        other = key.with_name("rsa.key")
        openssl("genpkey", "-algorithm", "rsa", "-out", other)
        other.chmod(0o600)
        assert "not an Ed25519 key" in script("manifest.py", release, "--version", "1", "--key", other).stderr
        empty = release.parent / "empty"
        empty.mkdir()
        assert "nothing to sign" in script("manifest.py", empty, "--version", "1", "--key", key).stderr
        assert not (release / "SHA256SUMS").exists()


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_bill_of_materials_is_valid_and_true(program: str) -> None:
    """By CycloneDX's own schema; versions are those that run here, and what only tests need is not in it."""
    done = script("sbom.py", program)
    assert done.returncode == 0, done.stderr
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(done.stdout) is None
    bom = json.loads(done.stdout)
    parts = {part["name"]: part for part in bom["components"]}
    assert bom["metadata"]["component"]["name"] == program
    assert parts["cryptography"]["version"] == version("cryptography")
    assert parts["cryptography"]["purl"] == f"pkg:pypi/cryptography@{version('cryptography')}"
    assert parts["CPython"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert "OpenSSL" in parts
    assert ("aiokafka" in parts, "psutil" in parts) == (program == "ndcollector", program == "ndagent")
    assert not {"pytest", "ruff", "hypothesis", "cyclonedx-python-lib"} & parts.keys()
    assert all(part.get("licenses") for part in bom["components"]), "a licence that nobody declared"
    needs = {one["ref"]: one.get("dependsOn", []) for one in bom["dependencies"]}
    reachable, wanted = set(), [bom["metadata"]["component"]["bom-ref"]]
    while wanted:
        reachable.add(ref := wanted.pop())
        wanted += [need for need in needs[ref] if need not in reachable]
    assert reachable == set(needs), "a part that nothing needs"
    assert script("sbom.py", program).stdout == done.stdout, "the same environment, another document"


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_licences_of_all_that_is_bundled_are_there_with_their_texts(program: str) -> None:
    """Everything of the bill of materials; MIT, BSD and Apache ask for their text to go along."""
    done = script("licences.py", program)
    assert done.returncode == 0, done.stderr
    for part in json.loads(script("sbom.py", program).stdout)["components"]:
        assert f"\n{part['name']} {part['version']}\nLicence: " in done.stdout
    assert "Apache License" in done.stdout
    assert "Permission is hereby granted" in done.stdout

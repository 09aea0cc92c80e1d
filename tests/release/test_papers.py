"""What goes with a release: a manifest that openssl verifies, a bill of materials, the licences of what is bundled.

What is in the packages themselves is read by tests/packages.
"""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
from collector_process import ROOT
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from ndpackages import lock, notices, sbom
from ndpackages.freezing import Frozen
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGING = ROOT / "packaging"


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

    def test_a_manifest_further_down_is_a_file_like_any_other(self, release: Path, key: Path) -> None:
        """One that nobody signed would vouch for what lies beside it."""
        (release / "papers" / "SHA256SUMS").write_text("somebody's")
        script("manifest.py", release, "--version", "0.1.0", "--key", key)
        assert "  papers/SHA256SUMS\n" in (release / "SHA256SUMS").read_text()


@pytest.fixture
def frozen(tmp_path: Path) -> Frozen:
    """As if PyInstaller had found these in the environment that runs here."""
    return Frozen(tmp_path, frozenset({"cryptography", "cffi", "pydantic", "paho-mqtt"}), frozenset({"zlib1g"}))


def lock_of(names: Iterable[str]) -> str:
    """What stands in a lock for what is installed."""
    return "".join(f"{name}=={version(name)} --hash=sha256:{'0' * 63}{n}\n" for n, name in enumerate(sorted(names)))


def bill(frozen: Frozen, lock_text: str) -> str:
    """As layout.py makes it."""
    found = notices.distributions(frozen)
    debian = sbom.debian_parts([("zlib1g", "1:1.2.13.dfsg-1")], "amd64")
    parts = [*sbom.python_parts(found, sbom.locked(lock_text)), *debian]
    needs = sbom.python_needs(found)
    return sbom.bill_of_materials(program="ndagent", version="1.2.3", parts=parts, needs=needs, epoch=1_790_000_000)


def test_the_bill_of_materials_is_valid_and_lists_what_was_frozen(frozen: Frozen) -> None:
    """By CycloneDX's own schema; hashes are those of the lock, and what a wheel has linked in is below it."""
    text = bill(frozen, lock_of(frozen.distributions))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert bill(frozen, lock_of(frozen.distributions)) == text, "the same tree, another document"
    document = json.loads(text)
    parts = {part["name"]: part for part in document["components"]}
    assert set(parts) == {*frozen.distributions, "zlib1g"}
    assert parts["cffi"]["hashes"] == [{"alg": "SHA-256", "content": "0" * 64}]
    assert parts["cryptography"]["purl"] == f"pkg:pypi/cryptography@{version('cryptography')}"
    assert parts["zlib1g"]["purl"] == "pkg:deb/debian/zlib1g@1%3A1.2.13.dfsg-1?arch=amd64&distro=debian-12"
    assert "openssl" in {part["name"] for part in parts["cryptography"]["components"]}, "the one that it has linked in"
    assert "/home/" not in text
    needs = {one["ref"]: one["dependsOn"] for one in document["dependencies"]}
    assert parts["cffi"]["bom-ref"] in needs[parts["cryptography"]["bom-ref"]]
    assert sorted(part["bom-ref"] for part in parts.values()) == needs["ndagent@1.2.3"]


def test_what_is_not_in_the_lock_is_not_shipped(frozen: Frozen) -> None:
    """A distribution that came from elsewhere, or in another version."""
    text = lock_of(frozen.distributions)
    with pytest.raises(ValueError, match=r"cffi .* the lock has none: make packages-lock"):
        bill(frozen, text.replace("cffi==", "other=="))
    with pytest.raises(ValueError, match=r"the lock has 0\.0"):
        bill(frozen, text.replace(version("cffi"), "0.0"))


def test_the_lock_has_what_pyproject_asks_for() -> None:
    """A dependency that was changed and not locked anew would be missing in the packages, or another one."""
    locked = sbom.locked((PACKAGING / "requirements.lock").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(PACKAGING / "requirements.in").read_text().splitlines()]
    wanted += [text for extra in lock.EXTRAS.split(",") for text in project["optional-dependencies"][extra]]
    requirements = [Requirement(text) for text in wanted if text and not text.startswith("#")]
    debian = {"sys_platform": "linux", "platform_system": "Linux", "python_version": "3.11"}
    for one in requirements:
        if one.marker is None or one.marker.evaluate(debian):
            version_locked, _ = locked.get(canonicalize_name(one.name), ("none", ""))
            assert version_locked != "none", f"{one}: make packages-lock"
            assert one.specifier.contains(version_locked), f"{one}, locked {version_locked}: make packages-lock"
    lines = [line for line in (PACKAGING / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(locked), "a line that is no name, version and hash: an index, a URL"


def test_every_part_of_the_lock_that_programs_need_declares_a_licence_and_has_its_text() -> None:
    """MIT, BSD and Apache ask for their text to go along. What only builds may lack it."""
    locked = sbom.locked((PACKAGING / "requirements.lock").read_text())
    here = {name for name in locked if _is_installed(name)}
    assert {"cryptography", "pydantic", "aiokafka", "psutil"} <= here
    for name in sorted(here):
        text = notices.notices(Frozen(Path(), frozenset({name}), frozenset()))
        assert notices.licence(distribution(name))
        assert "no licence text of its own" not in text, name
        assert len(text) > 600, name


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True

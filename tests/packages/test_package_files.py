"""The built packages as files: what Debian's own checker says, how large they are, and the rpms in a root."""

import gzip
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from ndpackages.root import Root, clean_root, remove_tree
from packages.debian_machine import CACHE, PACKAGES
from packages.package_files import PackageFiles, package_files

pytestmark = [pytest.mark.packages, pytest.mark.timeout(1800)]
AGENT_DEB_LIMIT_BYTES = 18_000_000


@pytest.fixture(scope="module")
def files() -> PackageFiles:
    return package_files()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    """A Debian with systemd's commands, not booted, into which the host's rpm installs."""
    made = clean_root("bookworm", packages=PACKAGES, cache=CACHE, target=tmp_path / "root")
    yield made
    remove_tree(made.path)


def said(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_lintian_finds_no_error(files: PackageFiles) -> None:
    """Errors and warnings: each that we keep has its reason in packaging/deb/lintian-overrides."""
    command = ["lintian", "--allow-root", "--fail-on", "error,warning", files.agent, files.collector]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_agents_package_is_small_and_says_on_which_c_library_it_runs(files: PackageFiles) -> None:
    """18 MB; built on Debian 12 it must not ask for a newer C library than Debian 12 has."""
    sizes = {file.name: file.stat().st_size for file in (files.agent, files.collector)}
    installed = {deb.name: said("dpkg-deb", "-f", deb, "Installed-Size") for deb in (files.agent, files.collector)}
    print(f"bytes {sizes}, installed KiB {installed}")
    assert sizes[files.agent.name] <= AGENT_DEB_LIMIT_BYTES
    for deb in (files.agent, files.collector):
        floor = said("dpkg-deb", "-f", deb, "Depends").partition("libc6 (>= ")[2].partition(")")[0]
        assert (2, 30) <= tuple(map(int, floor.split("."))) <= (2, 36)


def test_the_compiled_codec_and_every_licence_are_in(files: PackageFiles, tmp_path: Path) -> None:
    """The pure twin would be twenty times slower, and nobody would see why."""
    for deb in (files.agent, files.collector):
        content = said("dpkg-deb", "-c", deb)
        assert "/wire/_codec.cpython-311" in content
        assert "third-party-notices.gz" in content
        subprocess.run(["dpkg-deb", "-x", deb, tmp_path], check=True)
        text = next(tmp_path.glob(f"usr/share/doc/{deb.name.partition('_')[0]}/copyright")).read_text()
        for component in ("cryptography", "orjson", "libssl3", "libc6" if "libc6" in text else "pyinstaller"):
            assert component in text


def test_the_bill_of_materials_in_a_package_is_valid_and_true(files: PackageFiles, tmp_path: Path) -> None:
    """What stands beside the packages, to be signed, is what they carry; it lists what is in the tree, no more."""
    for deb, rpm in ((files.agent, files.agent_rpm), (files.collector, files.collector_rpm)):
        name = deb.name.partition("_")[0]
        subprocess.run(["dpkg-deb", "-x", deb, tmp_path / name], check=True)
        documents = tmp_path / name / "usr/share/doc" / name
        text = (documents / "sbom.cdx.json").read_text()
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        beside = next(deb.parent.glob(f"{name}-*.cdx.json"))
        assert beside.read_text() == text
        licences = next(deb.parent.glob(f"{name}-*.licences.txt")).read_bytes()
        assert licences == gzip.decompress((documents / "third-party-notices.gz").read_bytes())
        assert f"/usr/share/doc/{name}/sbom.cdx.json" in said("rpm", "-qpl", rpm).split()
        parts = {part["name"] for part in json.loads(text)["components"]}
        assert {"cryptography", "orjson", "pydantic-core", "pyinstaller", "libssl3", "libpython3.11"} <= parts
        assert ("aiohttp" in parts, "uvloop" in parts) == (name == "ndcollector",) * 2, "an agent is frozen without"
        assert not {"pytest", "nfpm", "shtab"} & parts
        sums = (deb.parent / "SHA256SUMS").read_text()
        assert all(f"  {file.name}\n" in sums for file in (deb, rpm, beside))


def test_an_rpm_is_installed_verified_upgraded_and_removed(files: PackageFiles, root: Root) -> None:
    """With its scriptlets run in that root: users are made, modes are as listed, an edited configuration survives."""
    later = package_files("2")
    rpm = ["rpm", "--root", str(root.path)]
    said(*rpm, "--initdb")
    said(*rpm, "--nodeps", "-i", files.collector_rpm, files.agent_rpm)
    for name in ("ndcollector", "ndagent"):
        assert said(*rpm, "--nodeps", "-V", name) == ""
        assert said(*rpm, "-qc", name).split() == [f"/etc/{name}/{name}.yaml"]
        assert root.run(name, "--version").startswith(name)
    assert root.run("stat", "-c", "%a %U:%G", "/etc/ndcollector/ndcollector.yaml").strip() == "640 root:ndcollector"
    assert root.run("stat", "-c", "%a %U:%G", "/var/lib/ndcollector").strip() == "750 ndcollector:ndcollector"
    config = root.path / "etc/ndcollector/ndcollector.yaml"
    edited = config.read_text() + "# edited\n"
    config.write_text(edited)
    said(*rpm, "--nodeps", "-U", later.collector_rpm, later.agent_rpm)
    assert config.read_text() == edited
    assert said(*rpm, "-q", "ndcollector", "--qf", "%{RELEASE}") == "2"
    said(*rpm, "-e", "ndcollector", "ndagent")
    assert config.with_name("ndcollector.yaml.rpmsave").read_text() == edited
    left = root.run("find", "/usr", "-name", "*ndcollector*", "-o", "-name", "*ndagent*").split()
    assert left == []

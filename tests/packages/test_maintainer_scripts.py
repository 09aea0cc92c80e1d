"""What runs when dpkg and rpm install, replace and remove our packages, on machines that are not as one would wish.

In a root file system that is not booted, as in an image build: no systemd runs there.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ndpackages.root import Root, RootError, clean_root, remove_tree
from packages.debian_machine import CACHE, PACKAGES
from packages.package_files import PackageFiles, package_files

pytestmark = [pytest.mark.packages, pytest.mark.timeout(1800)]
SEED = "etc/default/ndagent"
URL, TOKEN = "https://[2001:db8::7]:8443", "ndt1_aGVsbG8-_x"


class DebianRoot:
    """A Debian that is not booted, with the packages at hand."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.path = root.path
        self._copy(package_files(), package_files("2"))

    def _copy(self, *files: PackageFiles) -> None:
        for one in files:
            for package in (one.agent, one.collector):
                shutil.copy(package, self.path / "root")

    def sh(self, script: str, **environ: str) -> str:
        """A script of its root; RootError where it fails."""
        return self.root.run("sh", "-ec", script, environ={"DEBIAN_FRONTEND": "noninteractive", **environ})

    def install(self, name: str, release: str = "1", **environ: str) -> str:
        """As dpkg does it, with nobody there to answer a question."""
        return self.sh(f"dpkg -i /root/{name}_*-{release}_*.deb", **environ)

    def status(self, name: str) -> str:
        """What dpkg thinks of it."""
        return self.sh(f"dpkg-query -W -f '${{db:Status-Abbrev}}${{Version}}' {name} 2>/dev/null || true")

    def stat(self, path: str) -> str:
        """Mode, owner, group."""
        return self.sh(f"stat -c '%a %U:%G' {path}").strip()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianRoot]:
    package_files()
    target = tmp_path_factory.mktemp("scripts") / "root"
    made = DebianRoot(clean_root("bookworm", packages=PACKAGES, cache=CACHE, target=target))
    yield made
    remove_tree(made.path)


@pytest.fixture
def debian(machine: DebianRoot) -> Iterator[DebianRoot]:
    """Without any trace of our packages, before and after."""
    yield machine
    machine.sh(
        "dpkg --purge ndagent ndcollector 2>/dev/null || true; deluser --quiet ndcollector || true;"
        "delgroup --quiet ndcollector || true; rm -rf /var/log/ndcollector* /etc/ndcollector /var/lib/ndcollector*"
    )


# ---- what an agent enrols with


def test_a_url_and_token_from_the_environment_are_kept_for_root_alone(debian: DebianRoot) -> None:
    """An IPv6 address is a URL like any other."""
    debian.install("ndagent", ND_COLLECTOR_URL=URL, ND_ENROLL_TOKEN=TOKEN)
    assert f"\nND_COLLECTOR_URL={URL}\nND_ENROLL_TOKEN={TOKEN}\n" in (debian.path / SEED).read_text()
    assert debian.stat(f"/{SEED}") == "600 root:root"


def test_a_file_that_an_image_brought_is_completed_and_closed(debian: DebianRoot) -> None:
    """One whose last line has no end; what the environment says counts more than what stood there."""
    seed = debian.path / SEED
    seed.write_text("PROXY=x\nND_ENROLL_TOKEN=ndt1_old\nOTHER=1")
    seed.chmod(0o644)
    inode = seed.stat().st_ino
    debian.install("ndagent", ND_COLLECTOR_URL=URL, ND_ENROLL_TOKEN=TOKEN)
    assert seed.read_text() == f"PROXY=x\nOTHER=1\nND_COLLECTOR_URL={URL}\nND_ENROLL_TOKEN={TOKEN}\n"
    assert debian.stat(f"/{SEED}") == "600 root:root"
    assert seed.stat().st_ino == inode, "a running agent's unit has the file bound"


def test_what_is_no_url_or_token_is_not_written_where_systemd_reads_settings(debian: DebianRoot) -> None:
    """A quote or a line feed could make another setting of it; the installation goes on, and says so."""
    said = debian.install("ndagent", ND_COLLECTOR_URL=URL, ND_ENROLL_TOKEN="x\nLD_PRELOAD=/tmp/x")
    assert "ND_ENROLL_TOKEN is not taken over" in said
    assert "LD_PRELOAD" not in (debian.path / SEED).read_text()


# ---- machines that have something already


def test_a_user_of_that_name_without_its_group_is_made_good(debian: DebianRoot) -> None:
    """From a restored /etc/passwd, say; files must belong to the group that the unit names."""
    debian.sh("useradd --system --gid nogroup --home-dir /var/lib/ndcollector --shell /usr/sbin/nologin ndcollector")
    debian.install("ndcollector")
    assert debian.status("ndcollector").startswith("ii")
    assert debian.stat("/etc/ndcollector/ndcollector.yaml") == "640 root:ndcollector"
    assert debian.stat("/var/lib/ndcollector") == "750 ndcollector:ndcollector"


def test_owners_and_modes_that_an_administrator_gave_are_kept(debian: DebianRoot) -> None:
    """Over an upgrade, and by dpkg-statoverride from the first installation on."""
    debian.sh("groupadd siem; dpkg-statoverride --add root siem 0640 /etc/ndcollector/ndcollector.yaml")
    debian.install("ndcollector")
    assert debian.stat("/etc/ndcollector/ndcollector.yaml") == "640 root:siem"
    debian.sh("chgrp siem /etc/ndcollector/conf.d; chmod 0770 /etc/ndcollector/conf.d")
    debian.install("ndcollector", "2")
    assert debian.stat("/etc/ndcollector/conf.d") == "770 root:siem"
    debian.sh("dpkg-statoverride --remove /etc/ndcollector/ndcollector.yaml; groupdel siem")


def test_a_collector_is_ready_only_if_its_own_user_can_read_all(debian: DebianRoot) -> None:
    """Certificates that only root can read look fine to root; what is said is what is really wrong."""
    assert "ca.crt does not exist" in debian.install("ndcollector")
    debian.sh("ndcollector pki init --name c1 --dns localhost && chmod 0600 /etc/ndcollector/pki/server.key")
    debian.sh("chown root:root /etc/ndcollector/pki/server.key; touch /run/ndcollector.is-new")
    said = debian.sh("/var/lib/dpkg/info/ndcollector.postinst configure 0.1.0-1")
    assert "server.key cannot be read as user ndcollector" in said
    assert not (debian.path / "run/ndcollector.is-new").exists()


# ---- upgrades


def test_an_upgrade_keeps_an_edited_configuration_and_asks_nothing(debian: DebianRoot) -> None:
    """And a downgrade of the package: dpkg asks only where the shipped text has changed, which it never does."""
    debian.install("ndcollector")
    config = debian.path / "etc/ndcollector/ndcollector.yaml"
    edited = config.read_text() + "# edited\n"
    config.write_text(edited)
    for release in ("2", "1"):
        debian.install("ndcollector", release)
        assert config.read_text() == edited
        assert debian.status("ndcollector").endswith(f"-{release}")
    assert not list(config.parent.glob("*.dpkg-*"))


def test_a_new_package_that_cannot_be_unpacked_leaves_the_old_one_configured(debian: DebianRoot) -> None:
    """Its preinst fails: dpkg calls the old package's scripts to undo, and what was there goes on."""
    debian.install("ndcollector")
    debian.sh(
        "rm -rf /broken; dpkg-deb -R /root/ndcollector_*-2_*.deb /broken;"
        "printf '#!/bin/sh\\nexit 1\\n' > /broken/DEBIAN/preinst; dpkg-deb -Znone -b /broken /root/broken.deb"
    )
    with pytest.raises(RootError):
        debian.sh("dpkg -i /root/broken.deb")
    assert debian.status("ndcollector") == "ii 0.1.0-1"
    debian.sh("rm -rf /broken /root/broken.deb; dpkg --audit")
    assert debian.stat("/etc/ndcollector/ndcollector.yaml") == "640 root:ndcollector"


def test_what_is_installed_is_what_was_packed(debian: DebianRoot) -> None:
    """dpkg --verify (debsums reads the same sums): nothing to say, also when the configuration is edited."""
    for name in ("ndagent", "ndcollector"):
        debian.install(name)
        assert debian.sh(f"dpkg --verify {name}") == ""
        sums = (debian.path / f"var/lib/dpkg/info/{name}.md5sums").read_text()
        assert f"usr/lib/{name}/{name}\n" in sums
        assert "  etc/" not in sums, "conffiles are not in it: they are there to be changed"


def test_scripts_refuse_to_run_outside_of_the_root_they_are_for(debian: DebianRoot) -> None:
    """dpkg --force-script-chrootless would have them make users and files on the machine that builds an image."""
    debian.install("ndagent")
    done = debian.sh("DPKG_ROOT=/other /var/lib/dpkg/info/ndagent.preinst install 2>&1 || echo refused")
    assert "inside /other" in done
    assert done.endswith("refused\n")


# ---- removal


def test_purge_ends_where_state_lies_on_disks_of_its_own(debian: DebianRoot) -> None:
    """A mount point cannot be removed: it is emptied and named, and the package is gone all the same."""
    debian.install("ndcollector")
    said = debian.sh(
        "mkdir -p /var/lib/ndcollector/spool; mount -t tmpfs none /var/lib/ndcollector/spool;"
        "touch /var/lib/ndcollector/spool/segment /var/lib/ndcollector/inventory;"
        "mount -t tmpfs none /etc/ndcollector/conf.d; dpkg --purge ndcollector 2>&1; find /var/lib/ndcollector -type f"
    )
    assert "/var/lib/ndcollector stays: a disk is mounted there" in said
    assert "(0 files are left in it)" in said
    assert "inventory" not in said
    assert debian.status("ndcollector").strip() in {"", "un"}


def test_purge_says_where_a_link_led_to(debian: DebianRoot) -> None:
    """State that an administrator moved and linked to is not followed: it may be anything."""
    debian.install("ndagent")
    debian.sh("mkdir /srv/agent; touch /srv/agent/key; rm -rf /var/lib/ndagent; ln -s /srv/agent /var/lib/ndagent")
    assert "/var/lib/ndagent led to /srv/agent, which stays" in debian.sh("dpkg --purge ndagent 2>&1")
    assert (debian.path / "srv/agent/key").exists()
    debian.sh("rm -r /srv/agent")


def test_purge_takes_instances_along_and_leaves_what_they_collected(debian: DebianRoot) -> None:
    """Their spools lie beside the first one's; what was collected is named, file by directory."""
    debian.install("ndcollector")
    debian.sh(
        "mkdir -p /etc/ndcollector/instances/edge /var/lib/ndcollector-edge/spool /var/log/ndcollector-edge;"
        "touch /var/log/ndcollector-edge/x.ndjson /var/lib/ndcollector-edge/spool/x"
    )
    said = debian.sh("dpkg --purge ndcollector 2>&1")
    assert "what was collected stays in /var/log/ndcollector-edge" in said
    assert debian.sh("find /etc /var/lib /var/log -name 'ndcollector*' -not -path '/var/lib/systemd/*'").split() == [
        "/var/log/ndcollector-edge"
    ]


# ---- rpm


def test_an_rpm_that_is_removed_disables_sockets_and_instances_too(debian: DebianRoot) -> None:
    """A socket left behind would listen for a program that is gone; and an rpm keeps the token of the environment."""
    files, later = package_files(), package_files("2")
    rpm = ["rpm", "--root", str(debian.path)]

    def run(*arguments: str | Path, **environ: str) -> None:
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environ}
        subprocess.run([*rpm, *arguments], check=True, capture_output=True, text=True, env=environ)

    run("--initdb")
    run("--nodeps", "-i", files.collector_rpm)
    run("--nodeps", "-i", files.agent_rpm, ND_COLLECTOR_URL=URL, ND_ENROLL_TOKEN=TOKEN)
    assert f"ND_ENROLL_TOKEN={TOKEN}\n" in (debian.path / SEED).read_text()
    assert debian.stat(f"/{SEED}") == "600 root:root"
    debian.sh("systemctl enable ndcollector ndagent ndcollector-https.socket ndcollector@edge 2>/dev/null")
    enabled = debian.path / "etc/systemd/system"
    assert len(ours(enabled)) == 4
    run("--nodeps", "-U", later.collector_rpm, later.agent_rpm)
    assert len(ours(enabled)) == 4, "an upgrade changes nothing of it"
    run("-e", "ndcollector", "ndagent")
    assert ours(enabled) == []
    debian.sh("rm -rf /etc/default/ndagent /var/lib/ndagent /etc/ndagent")


def ours(directory: Path) -> list[str]:
    """What is enabled of our units."""
    return sorted(path.name for path in directory.rglob("nd*") if re.match(r"nd(agent|collector)", path.name))


# ---- completion


@pytest.mark.parametrize(
    ("typed", "wanted"), [("spool l", "ls"), ("che", "check"), ("check --config /etc/host", "/etc/hostname")]
)
def test_bash_completes_commands_and_files(debian: DebianRoot, typed: str, wanted: str) -> None:
    """As bash does it when Tab is pressed, with the file that the package installs."""
    debian.install("ndcollector")
    words = ["ndcollector", *typed.split()]
    script = f"""
source /usr/share/bash-completion/completions/ndcollector
COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; COMP_LINE="{' '.join(words)}"; COMP_POINT=${{#COMP_LINE}}
_shtab_ndcollector ndcollector "{words[-1]}" "{words[-2]}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    assert wanted in debian.root.run("bash", "-c", script).split()

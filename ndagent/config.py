"""The agent's configuration: what may stand in ndagent.yaml, and how it is loaded.

Promises: `load` returns settings that are whole and checked, or raises ConfigError with every fault and its place; it
only reads. Plugs' own settings stand in the plugs' files (core/plugs.py), how files are read in core/yaml_file.py.
Refuses: looking at files that inputs would read, or for collectors (check_command.py does).
"""

import argparse
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, model_validator

from ndagent.core.decode_config import DecodeConfig
from ndagent.core.listen_once import check_listens_once, input_listeners
from ndagent.core.plugs import PlugTypes, check_name, type_from_name
from ndagent.core.policy_settings import overlay
from ndagent.core.settings import CONFIG_VERSION, ByteSize, ConfigPath, ConfigVersion, Duration, Settings
from ndagent.core.spool.config import SpoolConfig
from ndagent.core.validation import validate
from ndagent.core.yaml_file import Document, load_yaml
from ndagent.https_client import Proxy
from ndagent.inputs import INPUTS
from ndagent.outputs import OUTPUTS
from ndagent.outputs.collector import DeliveryConfig

if sys.platform == "win32":
    from ndagent.windows_folders import program_data

    HOME = program_data() / "Neurodefender" / "ndagent"
    """All that is the agent's but its program; closed to others (windows_security.py)."""
    DEFAULT_PATH, DEFAULT_STATE_DIR = HOME / "ndagent.yaml", HOME / "state"
else:
    DEFAULT_PATH, DEFAULT_STATE_DIR = Path("/etc/ndagent/ndagent.yaml"), Path("/var/lib/ndagent")


def check_ways(outputs: dict[str, Settings]) -> dict[str, Settings]:
    """An agent without a way to its collector would only fill its disk."""
    if not outputs:
        raise ValueError("is empty; leave the key out for both ways, or write mqtt: {} or https: {}")
    return outputs


PlugName = Annotated[str, AfterValidator(check_name)]
InputSettings = Annotated[SerializeAsAny[Settings], PlugTypes("input", INPUTS)]
OutputSettings = Annotated[SerializeAsAny[Settings], PlugTypes("output", OUTPUTS)]


class AgentSpoolConfig(SpoolConfig):
    """What waits for the collector, on a machine that has other things to do."""

    max_bytes: ByteSize = Field(
        default=1 << 30, ge=1 << 16, description="Disk space per stream; then see delivery.on_full."
    )
    max_age: Duration = Field(
        default=7 * 86400.0, ge=0, description="Undelivered events older than this are given up (counted); 0: never."
    )
    segment_bytes: ByteSize = Field(
        default=8 << 20, ge=1 << 13, description="Size of one spool file, at most an eighth of `max_bytes`."
    )
    tip_bytes: ByteSize = Field(
        default=1 << 20, description="Newest events kept in memory, for a collector that keeps up."
    )


class PolicyAllowConfig(Settings):
    """What a policy from the collector may make this host do; what is not listed here it never can."""

    inputs: tuple[str, ...] = Field(
        default=("file", "journald", "auditd", "host_metrics"),
        description="Input types that a policy may add, change or switch off; [] leaves inputs to this file alone.",
    )
    paths: tuple[str, ...] = Field(
        default=("/var/log/**",),
        description="Files (globs) that a policy may have read; never keys, shadow files and the agent's own state.",
    )


class LogConfig(Settings):
    """What the agent says to stderr, or the event log on Windows."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="error: data lost or a person needed; warning: recovered; info: state changes."
    )


def _host_name() -> str:
    return socket.gethostname() or "host"


class AgentConfig(Settings):
    """Everything in ndagent.yaml."""

    config_version: ConfigVersion = Field(
        default=CONFIG_VERSION, description="What this file is written for; a program that is older refuses it."
    )
    host_name: str = Field(
        default_factory=_host_name,
        min_length=1,
        max_length=255,
        description="This machine's name in events (host.name). Default: the host's name.",
        examples=["web-1"],
    )
    state_dir: ConfigPath = Field(default=DEFAULT_STATE_DIR, description="Certificate and key, spool, positions.")
    shutdown_timeout: Duration = Field(
        default=5.0, ge=0, description="How long a stop goes on sending; what is left waits in the spool."
    )
    spool: AgentSpoolConfig = Field(default=AgentSpoolConfig(), description="What waits for the collector.")
    inputs: Annotated[dict[PlugName, InputSettings], BeforeValidator(type_from_name)] = Field(
        default={}, description="Name: settings. `type` defaults to the name."
    )
    decode: DecodeConfig = Field(
        default=DecodeConfig(), description="How messages of inputs that take syslog from devices become events."
    )
    outputs: Annotated[
        dict[PlugName, OutputSettings], BeforeValidator(type_from_name), AfterValidator(check_ways)
    ] = Field(
        default={"mqtt": {}, "https": {}},  # type: ignore[dict-item]  # defaults are validated like what users write
        description="Ways to the collector, the preferred first; each event goes by one of them.",
    )
    delivery: DeliveryConfig = Field(default=DeliveryConfig(), description="How batches are made and sent.")
    status_every: Duration = Field(
        default=30.0, ge=1, le=3600, description="How often the collector is told how this agent is."
    )
    policy_allow: PolicyAllowConfig = Field(
        default=PolicyAllowConfig(), description="What a policy from the collector may make this host do."
    )
    log: LogConfig = Field(default=LogConfig(), description="What the agent says.")

    @model_validator(mode="after")
    def _listens_once(self) -> "AgentConfig":
        check_listens_once(input_listeners(self.inputs))
        return self


def load(path: Path, env: Mapping[str, str] = os.environ, *, policy: Mapping[str, Any] | None = None) -> AgentConfig:
    """The configuration in this file and the conf.d beside it; raises ConfigError with every fault found.

    `policy` is laid over it: the settings of a bundle that this host allows.
    """
    document = load_yaml(path, env)
    return validate(AgentConfig, _under(policy, document) if policy else document)


def _under(policy: Mapping[str, Any], document: Document) -> Document:
    """The document with the policy over it; what the policy took the place of stands nowhere any more."""
    replaced = {(section, key) for section, values in policy.items() for key in values}
    return replace(
        document,
        data=overlay(document.data, policy),
        places={loc: place for loc, place in document.places.items() if loc[:2] not in replaced},
        interpolated={loc: text for loc, text in document.interpolated.items() if loc[:2] not in replaced},
    )


def https_endpoints(config: AgentConfig) -> tuple[str, ...]:
    """Collectors that the configuration itself names for HTTPS: where renewal is asked for first."""
    named = [one.endpoints or () for one in config.outputs.values() if getattr(one, "type", "") == "https"]  # type: ignore[attr-defined]  # TransportConfig's
    return tuple(endpoint for endpoints in named for endpoint in endpoints if not endpoint.startswith("srv:"))


def proxy_of(config: AgentConfig) -> Proxy | None:
    """The proxy of the first way that has one: for what is asked of a collector besides taking events."""
    urls = [url for one in config.outputs.values() if (url := getattr(one, "proxy", None)) is not None]
    return Proxy.parse(urls[0]) if urls else None


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """`-c/--config FILE`, for a command that needs the configuration; the path is `arguments.config`."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        type=Path,
        default=DEFAULT_PATH,
        help="configuration file (default: %(default)s)",
    )

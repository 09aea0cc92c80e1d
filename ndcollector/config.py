"""The collector's configuration: what may stand in ndcollector.yaml, and how it is loaded.

Promises: `load` returns settings that are whole and checked, or raises ConfigError with every fault and its place; it
only reads. Plugs' own settings stand in the plugs' files (see core/plugs.py); how files are read, merged and
interpolated stands in core/yaml_file.py and, for users, in docs/configuration.md.
Refuses: looking at certificates, directories or ports (check_command.py does).
"""

import argparse
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, model_validator

from ndagent.core.decode_config import DecodeConfig
from ndagent.core.listen_once import Listener, check_listens_once, input_listeners
from ndagent.core.plugs import PlugTypes, check_name, type_from_name
from ndagent.core.settings import (
    CONFIG_VERSION,
    ByteSize,
    ConfigPath,
    ConfigVersion,
    Duration,
    ListenAddress,
    SettingError,
    Settings,
)
from ndagent.core.spool import SpoolConfig
from ndagent.core.tls import TlsConfig
from ndagent.core.validation import validate
from ndagent.core.yaml_file import load_yaml
from ndagent.wire.ecs import DecodeSettings
from ndcollector.agents.config import AgentsConfig
from ndcollector.inputs import INPUTS
from ndcollector.ledger.config import LedgerConfig
from ndcollector.outputs import OUTPUTS
from ndcollector.policy.config import PoliciesConfig
from ndcollector.routing.trials_config import TrialConfig, check_outputs
from ndcollector.sources.config import SourcesConfig

DEFAULT_PATH = Path("/etc/ndcollector/ndcollector.yaml")


def check_not_empty(outputs: dict[str, Settings]) -> dict[str, Settings]:
    """Events that nothing reads would only fill the disk. (No input is fine: that drains a spool.)"""
    if not outputs:
        raise ValueError("is empty; at least one is needed, such as archive: {type: file, path: …}")
    return outputs


PlugName = Annotated[str, AfterValidator(check_name)]
InputSettings = Annotated[SerializeAsAny[Settings], PlugTypes("input", INPUTS)]
OutputSettings = Annotated[SerializeAsAny[Settings], PlugTypes("output", OUTPUTS)]


class CollectorDecodeConfig(DecodeConfig):
    """How messages become events."""

    ring_bytes: ByteSize = Field(
        default=16 << 20, description="Decoded events kept so that outputs close to each other share one decoding."
    )


class AdminConfig(Settings):
    """The operators' doors; neither is for the network."""

    listen: ListenAddress = Field(
        default="127.0.0.1:9600", description="Health, readiness and Prometheus metrics over HTTP; keep it on loopback."
    )
    socket: ConfigPath = Field(
        default=Path("/run/ndcollector/admin.sock"), description="Unix socket of the admin commands on this machine."
    )
    max_taps: int = Field(default=8, ge=0, le=64, description="Live looks at events (`ndcollector tap`) at a time.")
    tap_buffer_bytes: ByteSize = Field(
        default=4 << 20, ge=1 << 16, description="Events waiting for a tap at an output; it misses what is beyond."
    )


class LogConfig(Settings):
    """What the daemon says to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="error: data lost or a person needed; warning: recovered; info: state changes."
    )


def _node_name() -> str:
    return socket.gethostname() or "collector"


class CollectorConfig(Settings):
    """Everything in ndcollector.yaml."""

    config_version: ConfigVersion = Field(
        default=CONFIG_VERSION, description="What this file is written for; a program that is older refuses it."
    )
    node_name: str = Field(
        default_factory=_node_name,
        min_length=1,
        max_length=255,
        description="This machine's name in events (observer.name). Default: the host's name.",
        examples=["collector-1"],
    )
    state_dir: ConfigPath = Field(default=Path("/var/lib/ndcollector"), description="Spool, cursors and dead letters.")
    shutdown_timeout: Duration = Field(
        default=30.0, ge=0, description="How long a stop goes on delivering; what is left waits in the spool."
    )
    tls: TlsConfig = Field(default=TlsConfig(), description="The collector's certificate, and whom it trusts.")
    spool: SpoolConfig = Field(default=SpoolConfig(), description="The durable queue between inputs and outputs.")
    decode: CollectorDecodeConfig = Field(default=CollectorDecodeConfig(), description="How messages become events.")
    inputs: Annotated[dict[PlugName, InputSettings], BeforeValidator(type_from_name)] = Field(
        default={}, description="Name: settings. `type` defaults to the name."
    )
    outputs: Annotated[
        dict[PlugName, OutputSettings], BeforeValidator(type_from_name), AfterValidator(check_not_empty)
    ] = Field(default={}, description="Name: settings. `type` defaults to the name. At least one.")
    tests: dict[str, TrialConfig] = Field(
        default={}, description="Name: a message and what outputs make of it; `ndcollector check --tests` looks."
    )
    policies: PoliciesConfig = Field(default=PoliciesConfig(), description="What agents are told to do.")
    agents: AgentsConfig = Field(
        default=AgentsConfig(), description="Enrolment, certificates and the inventory of agents."
    )
    ledger: LedgerConfig = Field(
        default=LedgerConfig(), description="What became of each sender's events (`ndcollector ledger`)."
    )
    sources: SourcesConfig = Field(
        default=SourcesConfig(), description="Who sends, how often, and who has gone quiet (`ndcollector sources`)."
    )
    admin: AdminConfig = Field(default=AdminConfig(), description="The operators' doors; neither is for the network.")
    log: LogConfig = Field(default=LogConfig(), description="What the daemon says to stderr.")

    def decode_settings(self) -> DecodeSettings:
        """What the decoder is made with."""
        return self.decode.settings(self.node_name)

    @model_validator(mode="after")
    def _listens_once(self) -> "CollectorConfig":
        check_listens_once(_listeners(self))
        return self

    @model_validator(mode="after")
    def _tests_what_is_there(self) -> "CollectorConfig":
        check_outputs(self.tests, self.outputs)
        return self

    @model_validator(mode="after")
    def _writes_once(self) -> "CollectorConfig":
        """Two outputs into one file: the second would never get to write."""
        seen: dict[Path, str] = {}
        for name, settings in self.outputs.items():
            path = getattr(settings, "path", None)
            if path in seen:
                raise SettingError(("outputs", name, "path"), f"is written by outputs.{seen[path]}; choose another")
            if path is not None:
                seen[path] = name
        return self


def _listeners(config: CollectorConfig) -> Iterator[Listener]:
    yield ("admin", "listen"), "tcp", config.admin.listen
    yield from input_listeners(config.inputs)


def load(path: Path, env: Mapping[str, str] = os.environ) -> CollectorConfig:
    """The configuration in this file and the conf.d beside it; raises ConfigError with every fault found."""
    return validate(CollectorConfig, load_yaml(path, env))


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

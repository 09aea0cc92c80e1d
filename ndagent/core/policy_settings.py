"""What a policy may set on an agent: the document that collectors merge and agents obey.

    inputs:   {auth: {type: file, paths: [/var/log/auth.log]}, noisy: null}     null: no input of that name
    delivery: {bytes_per_second: 1MiB, batch_age: 1s}
    spool:    {max_bytes: 2GiB, max_age: 7d}                                    from the next start on
    log:      {level: info}

The names are those of ndagent.yaml, over which it is laid.

Promises: both ends check structure by these classes: names, known types, sizes and durations, absolute paths. Nothing
here names an endpoint, a key, a certificate or a program: a policy cannot send events elsewhere or run anything.
Refuses: settings of single input types. The collector does not know them (it would have to import the inputs); the
agent checks them with the inputs' own classes and refuses the policy with the reason (ndagent/policy_check.py).
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from ndagent.core.near_miss import near_miss
from ndagent.core.plugs import check_name
from ndagent.core.settings import ByteSize, Duration, SettingError, Settings

INPUT_TYPES = (
    "auditd",
    "file",
    "host_metrics",
    "journald",
    "netflow",
    "snmp_trap",
    "syslog_tcp",
    "syslog_udp",
    "windows_event",
)
"""Kinds of input that a policy may name; which of them a host allows stands in its `policy_allow`."""

MAX_INPUTS = 64
_PATH_KEYS = frozenset({"path", "paths", "file", "files", "directory", "directories"})


class PolicyInput(Settings):
    """One input. All but `type` belongs to the type and is checked on the agent."""

    model_config = ConfigDict(extra="allow")

    type: str | None = Field(default=None, description="Which kind of input; defaults to the name.")

    @model_validator(mode="after")
    def _can_be_checked_here(self) -> "PolicyInput":
        if self.type is not None and self.type not in INPUT_TYPES:
            near = near_miss(self.type, INPUT_TYPES)
            remedy = f"did you mean '{near}'?" if near else f"known: {', '.join(INPUT_TYPES)}"
            raise SettingError(("type",), f"'{self.type}' is not a type of input; {remedy}")
        for loc, path in paths_in(self.model_extra or {}):
            if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
                raise SettingError(loc, f"{path!r} is not an absolute path; policies have no directory of their own")
        return self


def paths_in(settings: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The texts under this input's keys that are paths by their names, with where they stand."""
    for key in sorted(_PATH_KEYS & settings.keys()):
        value = settings[key]
        if isinstance(value, str):
            yield (key,), value
        elif isinstance(value, list | tuple):
            yield from (((key, index), one) for index, one in enumerate(value) if isinstance(one, str))


class PolicySpool(Settings):
    """How much the agent keeps while no collector answers."""

    max_bytes: ByteSize | None = Field(default=None, ge=1 << 20, description="Room for events that wait.")
    max_age: Duration | None = Field(default=None, ge=60, description="Events that wait longer are shed, and counted.")


class PolicyDelivery(Settings):
    """How the agent sends; where it sends to is not a policy's to say."""

    bytes_per_second: ByteSize | None = Field(default=None, ge=1024, description="Bandwidth cap.")
    events_per_second: int | None = Field(default=None, ge=1, description="Rate cap.")
    batch_bytes: ByteSize | None = Field(default=None, ge=1024, le=4 << 20, description="Events sent together.")
    batch_age: Duration | None = Field(default=None, ge=0, le=60, description="How long a batch waits to be filled.")


class PolicyLog(Settings):
    """What the agent says of itself."""

    level: Literal["debug", "info", "warning", "error"] | None = Field(
        default=None, description="error: data lost or a person needed; warning: recovered; info: state changes."
    )


def _few(inputs: dict[str, Any]) -> dict[str, Any]:
    if len(inputs) > MAX_INPUTS:
        raise ValueError(f"holds {len(inputs)} inputs, {MAX_INPUTS} are allowed")
    return inputs


InputName = Annotated[str, AfterValidator(check_name)]


class PolicySettings(Settings):
    """A policy as merged, or one layer of it. What is not set stays as the agent's own ndagent.yaml has it."""

    inputs: Annotated[dict[InputName, PolicyInput | None], AfterValidator(_few)] = Field(
        default={}, description="Name: settings, in place of the agent's own input of that name; null: no such input."
    )
    delivery: PolicyDelivery = Field(default=PolicyDelivery(), description="How the agent sends.")
    spool: PolicySpool = Field(default=PolicySpool(), description="How much the agent keeps.")
    log: PolicyLog = Field(default=PolicyLog(), description="What the agent says of itself.")


def overlay(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The data of ndagent.yaml with a merged policy over it; neither is changed.

    An input of the policy stands in place of the whole input of that name, so that what was checked is what runs; the
    other sections are set key by key.
    """
    result = dict(config)
    for section, values in settings.items():
        before = result.get(section) or {}
        result[section] = {**before, **values}
        if section == "inputs":
            result[section] = {name: one for name, one in result[section].items() if one is not None}
    return result

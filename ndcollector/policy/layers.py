"""The directory of policy layers: which file says what, and which layers an agent has.

    policies/global/base.yaml                       every agent
    policies/global/compliance.yaml                 every agent; may hold `locked: [inputs.audit, log.level]`
    policies/group/department/<group>.yaml          agents of that group
    policies/group/role/<role>.yaml                 agents with that role; of several roles, in the order of their names
    policies/local/instance/<agent's name or id>.yaml
    policies/local/emergency.yaml                   `selector: all` (default) or {groups, roles, agents}

Merged from the top down, the last one winning. Every file may be missing.

Promises: `load_policies` returns all layers checked like the configuration, or raises ConfigError with every fault of
every file; a .yaml file where none belongs is a fault, because a policy that silently does not count is a trap; `${…}`
is a fault, because layers travel to other hosts. Refuses: what only an agent can judge (core/policy_settings.py).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, Field

from ndagent.core.policy_settings import PolicySettings
from ndagent.core.settings import Kind, Settings
from ndagent.core.validation import did_you_mean, validate
from ndagent.core.yaml_file import ConfigError, Document, Fault, Place, load_single_yaml
from ndagent.wire.policy import settings_digest
from ndcollector.policy.merge import Layer

MAX_LAYER_FILES = 4096
BASE, COMPLIANCE, EMERGENCY = "global/base", "global/compliance", "local/emergency"
DEPARTMENT, ROLE, INSTANCE = "group/department", "group/role", "local/instance"
_SINGLE = (BASE, COMPLIANCE, EMERGENCY)
_FOLDERS = (DEPARTMENT, ROLE, INSTANCE)


class AgentFacts(Protocol):
    """What decides about an agent's layers; the inventory knows it."""

    @property
    def id(self) -> str:
        """The id in its certificate."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def group(self) -> str:
        """Its department; empty where it has none."""

    @property
    def roles(self) -> tuple[str, ...]:
        """What it is for: web, db …"""


def _lockable(path: str) -> str:
    section, *rest = path.split(".")
    if section not in PolicySettings.model_fields:
        raise ValueError(f"{path!r} names no setting{did_you_mean(section, PolicySettings.model_fields)}")
    if not all(rest):
        raise ValueError(f"{path!r} is not a path; write the keys with a dot between them, such as inputs.audit")
    return path


class ComplianceSettings(PolicySettings):
    """policies/global/compliance.yaml."""

    locked: tuple[Annotated[str, AfterValidator(_lockable)], ...] = Field(
        default=(), description="Paths that stay as base and compliance have them, whatever later layers say."
    )


class Selector(Settings):
    """Whom an emergency is for: whoever is in one of these lists."""

    groups: tuple[str, ...] = Field(default=(), description="Agents of these groups.")
    roles: tuple[str, ...] = Field(default=(), description="Agents with one of these roles.")
    agents: tuple[str, ...] = Field(default=(), description="Agents with these names or ids.")

    def selects(self, agent: AgentFacts) -> bool:
        """Whether the agent is in one of the lists."""
        named = agent.id in self.agents or agent.name in self.agents
        return named or agent.group in self.groups or not set(self.roles).isdisjoint(agent.roles)


class EmergencySettings(PolicySettings):
    """policies/local/emergency.yaml."""

    selector: Annotated[Literal["all"] | Selector, Kind("all, or {groups: [], roles: [], agents: []}")] = Field(
        default="all", description="Whom it is for."
    )


@dataclass(frozen=True, slots=True)
class Policies:
    """All layers, by name; `selector` is the emergency's (None: all)."""

    layers: Mapping[str, Layer] = field(default_factory=dict)
    selector: Selector | None = None

    def of(self, agent: AgentFacts) -> tuple[Layer, ...]:
        """The agent's layers in the order of merging."""
        names = [BASE, COMPLIANCE, f"{DEPARTMENT}/{agent.group}", *(f"{ROLE}/{role}" for role in sorted(agent.roles))]
        names += dict.fromkeys((f"{INSTANCE}/{agent.name}", f"{INSTANCE}/{agent.id}"))
        if self.selector is None or self.selector.selects(agent):
            names.append(EMERGENCY)
        return tuple(self.layers[name] for name in names if name in self.layers)

    def plain(self) -> dict[str, Any]:
        """As plain data, for the store."""
        return {
            "selector": self.selector.model_dump() if self.selector else None,
            "layers": [
                {
                    "name": layer.name,
                    "data": layer.data,
                    "digest": layer.digest,
                    "locked": layer.locked,
                    "places": [[path, place] for path, place in layer.places.items()],
                }
                for layer in self.layers.values()
            ],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Policies":
        """Inverse of `plain`."""
        layers = {
            one["name"]: Layer(
                one["name"],
                one["data"],
                one["digest"],
                {tuple(path): place for path, place in one["places"]},
                tuple(map(tuple, one["locked"])),
            )
            for one in plain["layers"]
        }
        selector = plain["selector"]
        return cls(layers, None if selector is None else Selector.model_validate(selector))

    def is_same_as(self, other: "Policies") -> bool:
        """Whether both say the same, wherever it is written."""

        def said(one: Policies) -> object:
            return one.selector, {name: (layer.digest, layer.locked) for name, layer in one.layers.items()}

        return said(self) == said(other)


def load_policies(directory: Path) -> Policies:
    """The layers in this directory; raises ConfigError with all that is wrong with them."""
    faults: list[Fault] = []
    layers: dict[str, Layer] = {}
    selector: Selector | None = None
    if not directory.is_dir():
        raise ConfigError([Fault(Place(directory, 1, 1), (), "there is no such directory; make it, or set `policies`")])
    for name, file in _files(directory, faults):
        try:
            document = load_single_yaml(file)
            settings = validate(_model(name), document)
        except ConfigError as error:
            faults += error.faults
            continue
        layers[name] = _layer(name, document, settings, directory)
        if isinstance(settings, EmergencySettings) and isinstance(settings.selector, Selector):
            selector = settings.selector
    if faults:
        raise ConfigError(sorted(faults, key=lambda fault: fault.place))
    return Policies(layers, selector)


def _model(name: str) -> type[PolicySettings]:
    models: dict[str, type[PolicySettings]] = {COMPLIANCE: ComplianceSettings, EMERGENCY: EmergencySettings}
    return models.get(name, PolicySettings)


def _files(directory: Path, faults: list[Fault]) -> Iterator[tuple[str, Path]]:
    """Name and file of every layer; what looks like one and is none becomes a fault."""
    found = sorted(path for path in directory.rglob("*") if not path.name.startswith(".") and path.is_file())
    if len(found) > MAX_LAYER_FILES:
        faults.append(Fault(Place(directory, 1, 1), (), f"holds more than {MAX_LAYER_FILES} files"))
        return
    for path in found:
        relative = path.relative_to(directory)
        name, folder = relative.with_suffix("").as_posix(), relative.parent.as_posix()
        if path.suffix == ".yml":
            faults.append(Fault(Place(path, 1, 1), (), "is not read; rename it to end in .yaml"))
        elif path.suffix == ".yaml" and (name in _SINGLE or folder in _FOLDERS):
            yield name, path
        elif path.suffix == ".yaml":
            known = [*_SINGLE, *(f"{one}/{relative.stem}" for one in _FOLDERS)]
            faults.append(Fault(Place(path, 1, 1), (), f"is not a layer's file{did_you_mean(name, known)}"))


def _layer(name: str, document: Document, settings: PolicySettings, directory: Path) -> Layer:
    data = {key: _plain(value) for key, value in document.data.items() if key not in ("locked", "selector")}
    places: dict[tuple[str, ...], str] = {}
    for loc, (key, _) in document.places.items():
        path = tuple(part for part in loc if isinstance(part, str))
        if path and len(path) == len(loc):
            places[path] = f"{key.file.relative_to(directory.parent)}:{key.line}"
    locked = settings.locked if isinstance(settings, ComplianceSettings) else ()
    return Layer(name, data, settings_digest(data), places, tuple(tuple(path.split(".")) for path in locked))


def _plain(value: Any) -> Any:
    """Without the directory that texts of a configuration file carry."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, str) else value

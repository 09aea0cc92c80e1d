"""What this host lets a policy do: `policy_allow` in ndagent.yaml, against the settings of a bundle.

Promises: `why_refused` names everything that is not allowed or not valid, by its path, and an empty answer means that
the settings may be applied as they are. Unknown is refused: a type that this agent does not have, a key that the type
does not have, any text that looks like a path and does not lie where the host allows.
Refuses: changing settings. A policy is taken whole or not at all; half of one would be a policy nobody wrote.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from ndagent.core.policy_settings import PolicySettings
from ndagent.core.settings import Settings
from ndagent.core.yaml_file import Loc, dotted
from ndagent.policy_paths import PathGuard

MAX_REASONS = 16


class PolicyAllow(Protocol):
    """`policy_allow` in ndagent.yaml: types of input, and globs of what they may read."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Types of input that a policy may add, change or switch off."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Where a policy's inputs may read."""


ConfigOf = Callable[[str], type[Settings]]
"""Type of input → its settings class; raises KeyError for a type that is not there, ImportError for one that lacks
something."""


def why_refused(
    settings: Mapping[str, Any],
    *,
    allow: PolicyAllow,
    guard: PathGuard,
    config_of: ConfigOf,
    own_inputs: Mapping[str, str],
) -> list[str]:
    """Every reason against these settings, at most MAX_REASONS. `own_inputs` are ndagent.yaml's: name → type."""
    try:
        PolicySettings.model_validate(settings)
    except ValidationError as error:
        return list(_reasons(error, ()))[:MAX_REASONS]
    found: list[str] = []
    for name, one in settings.get("inputs", {}).items():
        loc = ("inputs", name)
        if name in own_inputs and own_inputs[name] not in allow.inputs:
            found.append(f"{dotted(loc)}: is the host's own, of a type that is not in policy_allow.inputs")
        elif one is not None:
            found += _input(loc, one, allow, guard, config_of)
    return found[:MAX_REASONS]


def _input(
    loc: Loc, one: Mapping[str, Any], allow: PolicyAllow, guard: PathGuard, config_of: ConfigOf
) -> Iterator[str]:
    kind = one.get("type")
    if kind not in allow.inputs:
        yield f"{dotted((*loc, 'type'))}: {kind} is not in policy_allow.inputs"
        return
    try:
        settings = config_of(kind).model_validate(one)
    except KeyError:
        yield f"{dotted((*loc, 'type'))}: this version of ndagent has no input {kind}"
    except ImportError as error:
        yield f"{dotted((*loc, 'type'))}: {kind} cannot run on this host: {error}"
    except ValidationError as error:
        yield from _reasons(error, loc)
    else:
        paths = dict.fromkeys([*_texts_like_paths(one, loc), *_paths(settings, loc)])
        reasons = ((at, path, guard.why_not(path)) for at, path in paths)
        yield from (f"{dotted(at)}: {path} {reason}" for at, path, reason in reasons if reason is not None)


def _reasons(error: ValidationError, loc: Loc) -> Iterator[str]:
    for one in error.errors(include_url=False, include_input=False):
        deeper = getattr(one.get("ctx", {}).get("error"), "path", ())  # see SettingError
        yield f"{dotted((*loc, *one['loc'], *deeper))}: {one['msg'].removeprefix('Value error, ')}"


def _texts_like_paths(value: object, loc: Loc) -> Iterator[tuple[Loc, str]]:
    """What was written and could be a path, whatever key it stands under."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _texts_like_paths(one, (*loc, key))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _texts_like_paths(one, (*loc, index))
    elif isinstance(value, str) and value.startswith(("/", "~", "file:")):
        yield loc, value


def _paths(value: object, loc: Loc) -> Iterator[tuple[Loc, str]]:
    """What the input's own class takes for a path, defaults included."""
    if isinstance(value, PurePath):
        yield loc, str(value)
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _paths(getattr(value, name), (*loc, name))
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _paths(one, (*loc, str(key)))
    elif isinstance(value, list | tuple):
        for index, one in enumerate(value):
            yield from _paths(one, (*loc, index))

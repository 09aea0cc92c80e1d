"""The part of a configuration that names plugs: `inputs:` and `outputs:`, each name with the settings of its type.

Promises: `type` defaults to the name, the settings are those of the type's own module (`Config`), and a module is
imported only when its type is configured. `builder` makes plugs from the
same registry. Refuses: keeping plugs (the composition roots' parts do).
"""

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from ndagent.core.near_miss import near_miss
from ndagent.core.settings import SettingError, Settings

_NAME = re.compile(r"[a-z0-9_]{1,64}")


class PlugTypes:
    """Stands in an annotation, `Annotated[Settings, PlugTypes("input", INPUTS)]`: settings of one of these types."""

    def __init__(self, kind: str, modules: Mapping[str, str]) -> None:
        self.kind = kind
        self.modules = modules

    def config(self, name: str) -> type[Settings]:
        """The settings class of a known type; raises ImportError if its module or what that needs is not there."""
        config: type[Settings] = importlib.import_module(self.modules[name]).Config
        return config

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validation by the chosen type's own model; its faults keep their places."""
        return core_schema.with_info_plain_validator_function(self._validate)

    def _validate(self, value: object, info: ValidationInfo) -> Settings:
        if isinstance(value, Settings):
            return value
        if not isinstance(value, dict):
            raise ValueError("should be a mapping: `key: value` lines")  # noqa: TRY004 - pydantic wants ValueError
        name = value.get("type")
        if not isinstance(name, str) or name not in self.modules:
            known = sorted(self.modules)
            near = near_miss(name, known)
            remedy = f"did you mean '{near}'?" if near else "set `type` to one of: " + ", ".join(known)
            raise SettingError(("type",), f"'{name}' is not a type of {self.kind}; {remedy}")
        try:
            config = self.config(name)
        except ImportError as error:
            raise SettingError(("type",), f"{self.kind} type '{name}' is not installed: {error}") from error
        return config.model_validate(value, context=info.context)


def type_from_name(value: object) -> object:
    """`{name: {...}}` with `type` filled in where it is not written; an empty section is one with defaults only."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        return value
    return {
        name: {"type": name, **(settings or {})} if settings is None or isinstance(settings, dict) else settings
        for name, settings in value.items()
    }


def check_name(name: str) -> str:
    """A plug's name: it becomes a metric label, a logger's name and a directory; raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError("a name is 1 to 64 characters of a-z, 0-9 and _")
    return name


def builder(modules: Mapping[str, str], context: object) -> Callable[[str, Any], Any]:
    """Makes the plug of a name and its settings: `build(name, settings, context)` of its type's module.

    Raises ImportError where what the module needs is not installed, and whatever `build` does (OSError, ValueError).
    """

    def build(name: str, settings: Any) -> Any:
        return importlib.import_module(modules[settings.type]).build(name, settings, context)

    return build

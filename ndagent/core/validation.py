"""From a YAML document to settings: types checked, and every fault told with its place and a remedy.

Promises: all faults at once, those of reading included; an unknown key names its near miss; what came out of `${…}` is
given the type its key wants ("600" becomes a number only where a number is wanted) and is never shown in a message.
Refuses: reading files (yaml_file.py).
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ndagent.core.near_miss import near_miss
from ndagent.core.plugs import PlugTypes
from ndagent.core.settings import Text
from ndagent.core.yaml_file import ConfigError, Document, Fault, Loc, Place, plain_value

M = TypeVar("M", bound=BaseModel)

_RUN = 4  # a message that shares this many characters in a row with a hidden value is not shown
_WRONG_TYPE = {
    "bool_type": "should be true or false",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "dict_type": "should be a mapping: `key: value` lines",
    "model_type": "should be a mapping: `key: value` lines",
    "list_type": "should be a list: [a, b], or lines that start with '- '",
    "tuple_type": "should be a list: [a, b], or lines that start with '- '",
    "none_required": "should be null",
}


def validate(model: type[M], document: Document) -> M:
    """The document as `model`; raises ConfigError with the faults of reading and of types together."""
    result, errors = _attempt(model, document, document.data)
    retyped = _retype(document, errors)
    if retyped is not None:
        result, errors = _attempt(model, document, retyped)
    faults = {str(fault): fault for fault in [*document.faults, *_faults(model, document, errors)]}
    if faults or result is None:
        main = document.file
        raise ConfigError(sorted(faults.values(), key=lambda fault: (fault.place.file != main, fault.place)))
    return result


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a near miss, else `; known: a, b, c`."""
    names = sorted(known)
    near = near_miss(word, names)
    return f"; did you mean '{near}'?" if near else f"; known: {', '.join(names)}"


def _attempt(model: type[M], document: Document, data: dict[str, Any]) -> tuple[M | None, list[dict[str, Any]]]:
    """The model or its errors, never an exception: a ValidationError in a traceback would show values."""
    try:
        return model.model_validate(data, context={"directory": document.file.parent.absolute()}), []
    except ValidationError as error:
        return None, [dict(one) for one in error.errors(include_url=False)]


def _retype(document: Document, errors: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The data with interpolated text turned into what an unquoted scalar means, wherever text was refused."""
    data, changed = document.data, False
    for loc in {_known_part(document, error["loc"]) for error in errors} & set(document.interpolated):
        value = plain_value(str(_at(document.data, loc)))
        if not isinstance(value, str):
            data, changed = _replaced(data, loc, value), True
    return data if changed else None


def _at(data: Any, loc: Loc) -> Any:
    for part in loc:
        data = data[part]
    return data


def _replaced(data: Any, loc: Loc, value: Any) -> Any:
    if not loc:
        return value
    copy: Any = dict(data) if isinstance(data, dict) else list(data)
    copy[loc[0]] = _replaced(data[loc[0]], loc[1:], value)
    return copy


def _known_part(document: Document, raw: Iterable[str | int]) -> Loc:
    """The part of pydantic's location that stands in the files: it mixes in branches of unions and '[key]'."""
    loc: Loc = ()
    for part in raw:
        if (*loc, part) in document.places:
            loc = (*loc, part)
    return loc


def _faults(model: type[BaseModel], document: Document, errors: list[dict[str, Any]]) -> Iterator[Fault]:
    """One fault per place; a union's branches are joined."""
    found: dict[tuple[Loc, Place], list[str]] = {}
    for error in errors:
        if error["type"] == "too_short" and any(_is_below(other["loc"], error["loc"]) for other in errors):
            continue  # its entries are wrong, so none was left to count
        deeper = getattr(error.get("ctx", {}).get("error"), "path", ())  # see SettingError
        section = _known_part(document, error["loc"])
        known = _known_part(document, (*section, *deeper))
        loc = (*section, *_absent_key(model, document, section, error["loc"]), *deeper)
        if not any(loc[: len(unknown)] == unknown for unknown in document.unknown):
            exact = known == (*error["loc"], *deeper)
            place = _place(document, known, error, exact=exact)
            what = _without_secrets(document, known, _what(model, document, known, error))
            found.setdefault((loc, place), []).append(what)
    for (loc, place), whats in found.items():
        yield Fault(place, loc, "; ".join(dict.fromkeys(whats)))


def _is_below(loc: Loc, above: Loc) -> bool:
    return len(loc) > len(above) and loc[: len(above)] == above


def _absent_key(model: type[BaseModel], document: Document, section: Loc, raw: Loc) -> Loc:
    """The key that an error is about although the files do not have it: required, or with a default that fails."""
    if len(raw) <= len(section) or (*section, raw[-1]) in document.places:
        return ()
    found = _section(model, document.data, section)
    return (raw[-1],) if found is not None and raw[-1] in found.model_fields else ()


def _place(document: Document, loc: Loc, error: dict[str, Any], *, exact: bool) -> Place:
    """Where the value stands; its key where that says more: for sections, and where the key is the trouble."""
    key_place, value_place = document.places[loc]
    scalar = not isinstance(_at(document.data, loc), dict | list)
    return value_place if exact and scalar and error["type"] != "extra_forbidden" else key_place


def _what(model: type[BaseModel], document: Document, loc: Loc, error: dict[str, Any]) -> str:
    kind, value = error["type"], error.get("input")
    if kind == "missing":
        return "this key is required"
    if kind == "extra_forbidden":
        section = _section(model, document.data, loc[:-1])
        return f"unknown key{did_you_mean(loc[-1], section.model_fields) if section else ''}"
    if kind in _WRONG_TYPE:
        shown = f", not {_as_yaml(value)}" if isinstance(value, bool | int | float | Text) else ""
        return _WRONG_TYPE[kind] + ("" if loc in document.interpolated else shown)
    if kind in ("string_type", "path_type") and isinstance(value, bool | int | float):
        return 'should be text; put it in "quotes"'
    if kind == "too_short":
        return "should not be empty"
    if kind == "literal_error":
        return _literal(error["ctx"]["expected"], value, hidden=loc in document.interpolated)
    return re.sub("^(Value error, |Assertion failed, )|^Input (?=should)", "", str(error["msg"]))


def _as_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value!r:.60}"


def _literal(expected: str, value: object, *, hidden: bool) -> str:
    if not isinstance(value, str) and f"'{value}'" in expected:
        return f'should be text; write "{value}", with the quotes'
    names = [name.strip("'") for name in expected.replace(" or ", ", ").split(", ")]
    near = None if hidden else near_miss(value, names)
    return f"should be {expected}" + (f"; did you mean '{near}'?" if near else "")


def _section(annotation: Any, data: Any, loc: Loc, key: str | int = "") -> type[BaseModel] | None:
    """The model that stands at `loc`, found by walking annotations and data side by side."""
    metadata, arguments = getattr(annotation, "__metadata__", ()), get_args(annotation)
    plugs = next((part for part in metadata if isinstance(part, PlugTypes)), None)
    if plugs is not None:
        name = str(data.get("type", key) if isinstance(data, dict) else key)
        return _section(plugs.config(name), data, loc) if name in plugs.modules else None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(loc[0])) if loc else None
        if field is None:
            return None if loc else annotation
        return _section(field.annotation, data[loc[0]], loc[1:], loc[0])
    if get_origin(annotation) in (dict, list, tuple) and loc:
        return _section(arguments[get_origin(annotation) is dict], data[loc[0]], loc[1:], loc[0])
    found = (_section(argument, data, loc, key) for argument in arguments)  # Annotated, Optional, Union
    return next((section for section in found if section is not None), None)


def _without_secrets(document: Document, loc: Loc, what: str) -> str:
    """The message without any value from `${…}` at, above or below `loc`."""
    for secret_loc, source in document.interpolated.items():
        depth = min(len(loc), len(secret_loc))
        value = str(_at(document.data, secret_loc)) if loc[:depth] == secret_loc[:depth] else ""
        if value:
            what = what.replace(repr(value), source)
            if _shares_text(what.replace(source, "").lower(), value.lower()):
                return f"what {source} gave cannot be used here (not shown: it may be a secret)"
    return what


def _shares_text(message: str, value: str) -> bool:
    if len(value) < _RUN:
        return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", message) is not None
    runs = {value[at : at + _RUN] for at in range(len(value) - _RUN + 1)}
    return any(message[at : at + _RUN] in runs for at in range(len(message) - _RUN + 1))

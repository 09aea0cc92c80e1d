"""Reference files: every key of a configuration with its help, what may be written there, and its default.

Promises: all of it comes from the settings classes (descriptions, types, limits, defaults), of every registered input
and output too; the same program gives the same bytes on every machine. `python -m ndcollector.reference` and `python -m
ndagent.reference` write the files, `--check` exits 1 when one is stale. Refuses: text of its own about a key; write
that in the key's description.
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel, SecretStr, TypeAdapter
from pydantic.fields import FieldInfo

from ndagent.core.plugs import PlugTypes
from ndagent.core.settings import Kind
from ndagent.core.yaml_file import plain_value

_WIDTH = 118
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    SecretStr: "text (never shown)",
    IPv4Network: "a network (10.2.0.0/16)",
    IPv6Network: "a network (10.2.0.0/16)",
}
_LIMITS = (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than"))
_PLAIN = re.compile(r"[A-Za-z0-9./][A-Za-z0-9./:_+-]*")


def reference(model: type[BaseModel], head: str) -> str:
    """The whole file as text, behind these lines."""
    return head + "".join(f"{line}\n" for line in _section(model, top=True))


def _section(model: type[BaseModel], *, top: bool = False) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if top:
            yield ""
        yield from _entry(name, field)


def _entry(name: str, field: FieldInfo) -> Iterator[str]:
    """Comment, key and default of one field; sections and plugs with what is inside."""
    model, plugs = _inside(field.annotation)
    is_section = model is field.annotation
    if plugs is not None:
        yield from _comment(field.description or "")
        yield f"{name}:"
        yield from _indented(_plugs(plugs))
    elif model is not None and is_section:
        yield from _comment(field.description or (model.__doc__ or "").partition("\n")[0])
        yield f"{name}:"
        yield from _indented(_section(model))
    else:
        yield from _comment(field.description or "")
        yield from _comment(f"Takes {_kind(field.annotation, field.metadata)}.")
        yield _line(name, field)
        if model is not None:  # a list of sections, or one that may be null: shown, but not set
            start = "- " if get_origin(field.annotation) in (tuple, list) else "  "
            inside = list(_section(model))
            yield from (f"#   {start if index == 0 else '  '}{line}" for index, line in enumerate(inside))


def _plugs(plugs: PlugTypes) -> Iterator[str]:
    for index, name in enumerate(sorted(plugs.modules)):
        if index:
            yield ""
        model = plugs.config(name)
        yield from _comment((sys.modules[model.__module__].__doc__ or "").partition("\n")[0])
        yield f"{name}:"
        for field_name, field in model.model_fields.items():
            if field_name == "type":
                yield "  # Defaults to the name that it stands under."
                yield f"  type: {name}"
            else:
                yield from _indented(_entry(field_name, field))


def _line(name: str, field: FieldInfo) -> str:
    """`key: default`; the example where there is no fixed default, a comment where there is neither."""
    if field.examples:
        return f"{name}: {_yaml(field.examples[0])}"
    if field.is_required():
        return f"# {name}:   (required)"
    adapter: TypeAdapter[Any] = TypeAdapter(_annotated(field))
    default = field.get_default(call_default_factory=True, validated_data={})
    return f"{name}: {_yaml(adapter.dump_python(default, mode='json', warnings=False))}"


def _annotated(field: FieldInfo) -> Any:
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _inside(annotation: Any) -> tuple[type[BaseModel] | None, PlugTypes | None]:
    """The section, or the plugs, somewhere inside an annotation."""
    for part in getattr(annotation, "__metadata__", ()):
        if isinstance(part, PlugTypes):
            return None, part
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, None
    inner = (_inside(argument) for argument in get_args(annotation) if get_origin(annotation) is not Literal)
    return next((found for found in inner if found != (None, None)), (None, None))


def _kind(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """In words, what may be written: the type, its limits, and whether null is one of the values."""
    found = [*metadata, *getattr(annotation, "__metadata__", ())]
    words = next((str(part) for part in found if isinstance(part, Kind)), None) or _type(annotation)
    null = ["or null"] if NoneType in get_args(annotation) else []
    return ", ".join([words, *_limits(annotation, found), *null])


def _type(annotation: Any) -> str:
    arguments = [argument for argument in get_args(annotation) if argument is not NoneType]
    if get_origin(annotation) is Literal:
        *others, last = map(_yaml, arguments)
        return f"{', '.join(others)} or {last}" if others else last
    if get_origin(annotation) is Annotated:
        return _kind(arguments[0])
    if get_origin(annotation) in (tuple, list, set, frozenset):
        return f"a list of: {_kind(arguments[0])}"
    if get_origin(annotation) is dict:
        return "a mapping"
    if arguments:
        return ", or ".join(dict.fromkeys(map(_kind, arguments)))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "sections as below"
    return _KINDS.get(annotation, "text")


def _limits(annotation: Any, metadata: list[Any]) -> Iterator[str]:
    for part in metadata:
        if isinstance(part, annotated_types.Len | annotated_types.MaxLen) and part.max_length is not None:
            yield f"at most {part.max_length} {'characters' if annotation is str else 'items'}"
        for attribute, words in _LIMITS:
            limit = getattr(part, attribute, None)
            if limit is not None and not (attribute == "ge" and limit == 0):
                value = TypeAdapter(Annotated[(annotation, *metadata)]).dump_python(limit, mode="json", warnings=False)
                yield f"{words} {value}"


def _yaml(value: Any) -> str:
    if isinstance(value, str):
        text_stays = _PLAIN.fullmatch(value) and isinstance(plain_value(value), str)
        return value if text_stays and not value.endswith(":") else json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_yaml(item)}' for key, item in value.items())}}}"
    return json.dumps(value)


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), _WIDTH - 8)]


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" if line else "" for line in lines)


def write_or_check(path: Path, text: str, *, program: str) -> int:
    """The command: write the file, or compare it with `--check`; the value is the exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=f"Make {path.name}.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is stale")
    if not parser.parse_args().check:
        path.write_text(text, encoding="utf-8")
        return 0
    if path.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{path} is stale; run: python -m {program}\n")
    return 1

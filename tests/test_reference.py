"""The generated reference files: up to date, complete, and true."""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

import ndagent.config
import ndagent.inputs
import ndagent.outputs
import ndagent.reference
import ndcollector.config
import ndcollector.inputs
import ndcollector.outputs
import ndcollector.reference
from ndagent.core.plugs import PlugTypes
from ndagent.core.yaml_file import load_yaml


class Program(NamedTuple):
    """One of the two programs' configurations."""

    name: str
    path: Path
    text: str
    model: type[BaseModel]
    load: Callable[..., Any]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


PROGRAMS = [
    Program(
        "ndcollector", ndcollector.reference.REFERENCE, ndcollector.reference.reference(),
        ndcollector.config.CollectorConfig, ndcollector.config.load, ndcollector.inputs.INPUTS,
        ndcollector.outputs.OUTPUTS,
    ),
    Program(
        "ndagent", ndagent.reference.REFERENCE, ndagent.reference.reference(), ndagent.config.AgentConfig,
        ndagent.config.load, ndagent.inputs.INPUTS, ndagent.outputs.OUTPUTS,
    ),
]  # fmt: skip
both = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)


@both
def test_the_reference_is_what_the_program_would_write(program: Program) -> None:
    """Run `make reference` when this fails."""
    assert program.path.read_text(encoding="utf-8") == program.text


@both
def test_the_command_compares_without_writing(program: Program) -> None:
    """For CI and packagers."""
    command = [sys.executable, "-m", f"{program.name}.reference", "--check"]
    result = subprocess.run(command, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")


@both
def test_every_key_of_the_settings_is_there(program: Program) -> None:
    """The top level, and every registered input and output."""
    document = load_yaml(program.path, {})
    assert list(document.data) == list(program.model.model_fields)
    assert sorted(document.data["inputs"]) == sorted(program.inputs)
    assert sorted(document.data["outputs"]) == sorted(program.outputs)


@both
def test_the_reference_is_a_valid_configuration(program: Program, tmp_path: Path) -> None:
    """Once its required keys have a value: the defaults pass the checks that users' values pass."""
    text = program.path.read_text(encoding="utf-8")
    text = re.sub(r"# (paths):   \(required\)", r"\1: [/var/log/example.log]", text)
    text = re.sub(r"# (\w+):   \(required\)", r"\1: example", text)
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert set(program.load(tmp_path / "config.yaml", {}).outputs) == set(program.outputs)


@both
def test_every_key_has_help(program: Program) -> None:
    """A key nobody explained is a key nobody uses."""
    silent: list[str] = []

    def walk(model: type[BaseModel], path: str) -> None:
        for name, field in model.model_fields.items():
            annotation = field.annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                walk(annotation, f"{path}{name}.")
            elif not field.description and name != "type":
                silent.append(f"{path}{name}")

    walk(program.model, "")
    for kind, registry in (("input", program.inputs), ("output", program.outputs)):
        for name in registry:
            walk(PlugTypes(kind, registry).config(name), f"{kind}.{name}.")
    assert silent == []


def test_the_shipped_configurations_are_valid(tmp_path: Path) -> None:
    """What a package installs must start."""
    conf = ndagent.reference.REFERENCE.parent
    assert set(ndagent.config.load(conf / "ndagent.yaml", {}).inputs) == {"journald", "auditd", "host_metrics"}
    assert set(ndcollector.config.load(conf / "ndcollector.yaml", {}).inputs) >= {"syslog_tls"}

"""The generated reference file: up to date, complete, and true."""

import re
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel

from ndagent.core.plugs import PlugTypes
from ndagent.core.yaml_file import load_yaml
from ndcollector.config import CollectorConfig, load
from ndcollector.inputs import INPUTS
from ndcollector.outputs import OUTPUTS
from ndcollector.reference import REFERENCE, reference


def test_the_reference_is_what_the_program_would_write() -> None:
    """Run `python -m ndcollector.reference` when this fails."""
    assert REFERENCE.read_text(encoding="utf-8") == reference()


def test_the_command_compares_without_writing() -> None:
    """For CI and packagers."""
    command = [sys.executable, "-m", "ndcollector.reference", "--check"]
    result = subprocess.run(command, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")


def test_every_key_of_the_settings_is_there() -> None:
    """The top level, and every registered input and output."""
    document = load_yaml(REFERENCE, {})
    assert list(document.data) == list(CollectorConfig.model_fields)
    assert sorted(document.data["inputs"]) == sorted(INPUTS)
    assert sorted(document.data["outputs"]) == sorted(OUTPUTS)


def test_the_reference_is_a_valid_configuration(tmp_path: Path) -> None:
    """Once its required keys have a value: the defaults pass the checks that users' values pass."""
    text = re.sub(r"# (\w+):   \(required\)", r"\1: example", REFERENCE.read_text(encoding="utf-8"))
    (tmp_path / "ndcollector.yaml").write_text(text, encoding="utf-8")
    assert set(load(tmp_path / "ndcollector.yaml", {}).outputs) == set(OUTPUTS)


def test_every_key_has_help() -> None:
    """A key nobody explained is a key nobody uses."""
    silent: list[str] = []

    def walk(model: type[BaseModel], path: str) -> None:
        for name, field in model.model_fields.items():
            annotation = field.annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                walk(annotation, f"{path}{name}.")
            elif not field.description and name != "type":
                silent.append(f"{path}{name}")

    walk(CollectorConfig, "")
    for kind, registry in (("input", INPUTS), ("output", OUTPUTS)):
        for name in registry:
            walk(PlugTypes(kind, registry).config(name), f"{kind}.{name}.")
    assert silent == []

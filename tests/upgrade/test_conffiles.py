"""The shipped YAML is the same text in every release: dpkg and rpm then have no new version to ask or warn about."""

import hashlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = {
    "ndagent.yaml": "793f16c10c64cdeb9d797da870ba494b76249bb5bac6c1aed0f4e57e93a90f71",
    "ndcollector.yaml": "9aa4ad7f46277f09426e50f255b125cc5a3fa9d02d2bbc8330cd27f3aab7c26f",
}
"""SHA-256, since 0.1.0."""


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_configuration_has_not_changed_since_the_first_release(name: str) -> None:
    """One changed byte, and an upgrade of a machine where it was edited stops with a question that nobody answers.

    New settings belong into the reference and into defaults of the program.
    """
    found = hashlib.sha256((ROOT / "conf" / name).read_bytes()).hexdigest()
    assert found == SHIPPED[name], f"put conf/{name} back as it was"

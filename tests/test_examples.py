"""Examples in conf/examples are what people copy: each must be valid."""

from pathlib import Path

import pytest

from ndcollector.config import load

EXAMPLES = sorted((Path(__file__).parent.parent / "conf" / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_example_is_valid(path: Path) -> None:
    """Every key is known and every value allowed; files it names need not exist here."""
    assert load(path, {}).outputs


def test_there_are_examples() -> None:
    """An empty directory would make the test above pass with nothing."""
    assert EXAMPLES

"""Topics and paths both ends agree on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndagent.wire.routes import STREAMS, Channel, channel_of, is_agent_id, parse_topic, topic


@given(st.from_regex(r"[a-z0-9]{1,64}", fullmatch=True), st.sampled_from(Channel))
def test_a_topic_that_was_built_is_parsed_back(agent_id: str, channel: Channel) -> None:
    """Both ends mean the same."""
    assert parse_topic(topic(agent_id, channel)) == (agent_id, channel)


@given(st.text())
def test_whatever_parses_is_exactly_an_agents_topic(name: str) -> None:
    """No wildcard, no level more or less, no line feed at the end."""
    found = parse_topic(name)
    assert found is None or topic(*found) == name


@pytest.mark.parametrize(
    "name",
    [
        "nd/v1/agents/+/events", "nd/v1/agents/#", "nd/v1/agents/a/events/", "nd/v1/agents//events",
        "nd/v1/agents/a/other", "nd/v1/agents/a/events\n", "/nd/v1/agents/a/events", "nd/v2/agents/a/events",
    ],
)  # fmt: skip
def test_near_misses_are_no_topics(name: str) -> None:
    """Each of them would be somebody else's, or nobody's."""
    assert parse_topic(name) is None


@pytest.mark.parametrize("agent_id", ["", "a/b", "+", "#", "A", "a" * 65, "-a", "a\n", "ä"])
def test_no_topic_is_built_from_what_is_no_id(agent_id: str) -> None:
    """An id becomes a level of a topic."""
    assert not is_agent_id(agent_id)
    with pytest.raises(ValueError, match="not an agent's id"):
        topic(agent_id, Channel.EVENTS)


def test_each_stream_has_the_channel_that_carries_it() -> None:
    """What an agent sends is what the collector takes there."""
    for stream in ("security_events", "alerts", "metrics"):
        assert stream in STREAMS[channel_of(stream)]

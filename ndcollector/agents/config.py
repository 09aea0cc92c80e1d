"""What ndcollector.yaml says about agents."""

from typing import Annotated

from pydantic import AfterValidator, Field

from ndagent.core.settings import ConfigPath, Duration, Kind, Settings
from ndagent.wire.enrolment import MAX_ENDPOINTS, is_endpoint


def check_endpoint(text: str) -> str:
    """host:port; raises ValueError that shows a good example."""
    if not is_endpoint(text):
        raise ValueError(f"{text!r} is not an endpoint; write host:port such as collector.example.net:8883")
    return text


Endpoint = Annotated[str, AfterValidator(check_endpoint), Kind("an endpoint (host:port)")]


class EndpointsConfig(Settings):
    """Where agents are told to send; the preferred first."""

    mqtt: tuple[Endpoint, ...] = Field(
        default=(),
        max_length=MAX_ENDPOINTS,
        description="host:port of each collector's mqtt input; empty: this collector's listeners, by the first DNS "
        "name of its certificate.",
    )
    https: tuple[Endpoint, ...] = Field(
        default=(), max_length=MAX_ENDPOINTS, description="host:port of each collector's https input; empty: likewise."
    )


class AgentsConfig(Settings):
    """Enrolment, certificates and the inventory of agents."""

    endpoints: EndpointsConfig = Field(
        default=EndpointsConfig(), description="Where agents are told to send; the preferred first."
    )
    ca_file: ConfigPath | None = Field(
        default=None, description="CA certificates (PEM) that agents check collectors with; null: those of tls.ca_file."
    )
    certificate_days: int = Field(
        default=90, ge=1, le=825, description="Life of an agent's certificate; it renews at two thirds."
    )
    max_agents: int = Field(
        default=20_000,
        ge=1,
        description="Agents in the inventory; beyond this, enrolment is refused (2 KB of memory each).",
    )
    silent_after: Duration = Field(
        default=300.0, gt=0, description="An agent that was not heard for this long counts as silent."
    )
    wrong_tokens_per_minute: int = Field(
        default=20, ge=1, description="Wrong tokens from one address; beyond this it is answered 429 for a while."
    )

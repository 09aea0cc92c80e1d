"""What every output that speaks HTTP has: where, with which TLS and credentials, how traffic is managed."""

from typing import Annotated

from pydantic import AfterValidator, Field

from ndagent.core.settings import Kind
from ndcollector.routing.config import RoutedConfig


def check_url(url: str) -> str:
    """An http or https URL; raises ValueError that shows a good one."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is not a URL; write https://host:port/path")
    return url.rstrip("/")


Url = Annotated[str, AfterValidator(check_url), Kind("a URL")]


class HttpOutputConfig(RoutedConfig):
    """Outputs that speak HTTP derive from this one."""

    url: Url = Field(description="Where events are sent.", examples=["https://siem.example.net:8088"])

"""What every output that speaks HTTP has: where, with which TLS and credentials, how traffic is managed."""

import importlib.util
import ipaddress
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from ndagent.core.settings import BreakerConfig, ByteSize, Duration, Kind, SettingError, Settings
from ndcollector.routing.config import RoutedConfig
from ndcollector.traffic.credentials_config import BasicConfig, CredentialsConfig, FieldName, FieldValue, HmacConfig
from ndcollector.traffic.tls import ClientTlsConfig

MAX_URLS = 64


def check_url(url: str) -> str:
    """An http or https URL without credentials or fragment; raises ValueError that shows a good one."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if "@" in parts.netloc:
        raise ValueError("holds credentials, which would end in logs; write them under credentials.basic")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not url.isprintable() or " " in url:
        raise ValueError(f"{url!r} is not a URL; write https://host:port/path")
    if parts.fragment:
        raise ValueError(f"{url!r} has a fragment (#…), which is never sent; leave it out")
    return url if parts.query else url.rstrip("/") if parts.path == "/" else url


def check_proxy(url: str) -> str:
    """As check_url, and plain http: that is what proxies speak."""
    if not url.startswith("http://"):
        raise ValueError(f"{url!r} is not a proxy; write http://proxy.example.net:3128")
    return check_url(url)


Url = Annotated[str, AfterValidator(check_url), Kind("a URL")]
ProxyUrl = Annotated[str, AfterValidator(check_proxy), Kind("a proxy's URL")]


class EndpointBreakerConfig(BreakerConfig):
    """When to leave an endpoint alone for a while."""

    failures: int = Field(
        default=3,
        ge=1,
        description="Failed requests to an endpoint that open its breaker: within `window`, or in a row.",
    )
    window: Duration = Field(
        default=30.0, gt=0, description="Failures older than this are forgotten, if anything was answered since."
    )
    open_for: Duration = Field(
        default=5.0, gt=0, description="How long an endpoint is left alone before one request tries it again."
    )


class HealthConfig(Settings):
    """Asking each endpoint whether it is well."""

    path: str = Field(
        pattern=r"^/[!-~]*$", description="Asked for by GET, below the endpoint's host and port.", examples=["/health"]
    )
    every: Duration = Field(default=10.0, ge=0.1, description="How often.")
    timeout: Duration = Field(default=5.0, gt=0, description="An answer that takes longer is none.")
    expect: tuple[Annotated[int, Field(ge=100, le=599)], ...] = Field(
        default=(200, 204), min_length=1, description="Statuses that say that it is well."
    )
    failures: int = Field(default=2, ge=1, description="Bad answers in a row after which it gets nothing.")


class OutlierConfig(Settings):
    """Leaving out endpoints that do much worse than the others; at most half of them, and never the only one."""

    enabled: bool = Field(default=True, description="Whether this is done.")
    every: Duration = Field(default=10.0, ge=0.1, description="How often they are compared.")
    requests: int = Field(default=5, ge=1, description="An endpoint with fewer requests since then is not judged.")
    failure_rate: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="Out: a share of failed requests that is higher by this than its peers' median.",
    )
    latency_factor: float = Field(
        default=4.0, gt=1, description="Out: requests that take so many times as long as its peers' median."
    )
    eject_for: Duration = Field(
        default=30.0,
        gt=0,
        description="For how long at first; each time in a row longer by as much, up to ten times. So long is an "
        "endpoint left out, too, that does not answer in time.",
    )


class ConcurrencyConfig(Settings):
    """Requests at a time to each endpoint, each on a connection of its own."""

    minimum: int = Field(default=1, ge=1, le=256, description="Never fewer.")
    maximum: int = Field(default=8, ge=1, le=256, description="Never more; this is the limit of connections too.")
    adaptive: bool = Field(
        default=True,
        description="Between them as many as the endpoint bears: one more while it keeps up, half after 429 or 503, "
        "fewer when answers take longer. false: always the maximum.",
    )

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.minimum > self.maximum:
            raise SettingError(("minimum",), "is more than maximum")
        return self


class HedgeConfig(Settings):
    """A second request where the first takes long; only for requests that may arrive twice without harm."""

    after: Duration = Field(gt=0, description="How long the first may take.")
    most: int = Field(default=1, ge=1, le=4, description="Further requests at a time for the same events.")


class HttpOutputConfig(RoutedConfig):
    """Outputs that speak HTTP derive from this one."""

    url: Url | None = Field(
        default=None, description="Where events are sent; or `urls`.", examples=["https://siem.example.net:8088"]
    )
    urls: tuple[Url, ...] = Field(
        default=(), max_length=MAX_URLS, description="Several endpoints that take the same events; instead of `url`."
    )
    discovery: Literal["static", "dns", "srv"] = Field(
        default="static",
        description="static: each URL is an endpoint. dns: each address of its host is one. srv: its host is the name "
        "of SRV records (_hec._tcp.example.net), which give hosts and ports.",
    )
    balance: Literal["round_robin", "least_outstanding", "power_of_two", "ordered"] = Field(
        default="least_outstanding",
        description="Which endpoint gets a request: each in turn, the one with the fewest under way, the better of two "
        "drawn at random, or the first that is well.",
    )
    connect_timeout: Duration = Field(
        default=5.0, gt=0, description="An endpoint that takes no connection within this time is tried no longer."
    )
    request_timeout: Duration = Field(
        default=20.0, gt=0, description="A request to one endpoint ends within this time, its answer read."
    )
    timeout: Duration = Field(
        default=60.0, gt=0, description="A send, on however many endpoints, that takes longer counts as unavailable."
    )
    max_answer_bytes: ByteSize = Field(
        default=16 * 2**20, ge=1024, description="An answer that is larger is not read further and counts as none."
    )
    endpoint_breaker: EndpointBreakerConfig = EndpointBreakerConfig()
    health: HealthConfig | None = Field(
        default=None, description="Asking each endpoint whether it is well; null: requests alone tell."
    )
    outliers: OutlierConfig = OutlierConfig()
    concurrency: ConcurrencyConfig = ConcurrencyConfig()
    hedge: HedgeConfig | None = Field(
        default=None, description="A second request where the first takes long; null: never."
    )
    tls: ClientTlsConfig = ClientTlsConfig()
    credentials: CredentialsConfig | None = Field(default=None, description="Who we are to the far side.")
    hmac: HmacConfig | None = Field(default=None, description="A signature over time and body.")
    headers: dict[FieldName, FieldValue] = Field(default={}, description="Further header fields of every request.")
    proxy: ProxyUrl | None = Field(
        default=None, description="HTTP proxy, such as http://proxy.example.net:3128; the environment is not asked."
    )
    proxy_credentials: BasicConfig | None = Field(default=None, description="Name and password for the proxy.")

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The URLs, whichever way they were written."""
        return self.urls if self.url is None else (self.url,)

    @property
    def shows_credentials(self) -> bool:
        """Whether requests carry what nobody else may read."""
        return self.credentials is not None

    @model_validator(mode="after")
    def _knows_where(self) -> Self:
        if bool(self.urls) == (self.url is not None):
            raise SettingError(("url",), "write either url or urls")
        if len(set(self.urls)) < len(self.urls):
            raise SettingError(("urls",), "name an endpoint twice")
        if self.timeout <= self.request_timeout:
            raise SettingError(("timeout",), "must be more than request_timeout, so that another endpoint gets a try")
        return self

    @model_validator(mode="after")
    def _can_be_discovered(self) -> Self:
        key = "urls" if self.urls else "url"
        if self.discovery == "static":
            return self
        if importlib.util.find_spec("dns") is None:
            raise SettingError(
                ("discovery",), "needs dnspython: pip install 'neurodefender-collector[srv]', or use static"
            )
        for parts in map(urlsplit, self.endpoints):
            if self.discovery == "srv" and (parts.port is not None or not (parts.hostname or "").startswith("_")):
                raise SettingError((key,), "srv wants the records' name and no port: https://_hec._tcp.example.net")
            if self.discovery == "dns" and _is_address(parts.hostname or ""):
                raise SettingError((key,), "has an address for a host, which no DNS knows; use discovery: static")
        if self.discovery == "dns" and self.proxy is not None:
            raise SettingError(("discovery",), "a proxy resolves names itself; use static")
        return self

    @model_validator(mode="after")
    def _has_a_proxy_to_log_in_to(self) -> Self:
        if self.proxy_credentials is not None and self.proxy is None:
            raise SettingError(("proxy_credentials",), "there is no proxy")
        return self


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

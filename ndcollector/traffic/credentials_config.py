"""Who we are to an output's far side, as it is written in the configuration.

Promises: secrets are SecretStr, one kind of login at a time, and each kind has what it needs or says what is missing.
Refuses: using them (credentials.py does).
"""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from ndagent.core.settings import ConfigPath, Kind, SettingError, Settings

_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")  # RFC 9110 §5.6.2: a token
_OURS = frozenset({"content-length", "transfer-encoding", "connection", "host", "te", "trailer", "upgrade"})


def check_field_name(name: str) -> str:
    """The name of a header field that a user may set; raises ValueError."""
    if not _FIELD_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a header field; write one such as X-Api-Key")
    if name.lower() in _OURS:
        raise ValueError(f"{name!r} belongs to the connection and cannot be set")
    return name


def check_field_value(value: SecretStr) -> SecretStr:
    """A value without control characters, which could end the header early; raises ValueError that shows nothing."""
    text = value.get_secret_value()
    if not text.isascii() or not text.isprintable():
        raise ValueError("holds a character that a header field cannot have; is there a line feed at the end?")
    return value


FieldName = Annotated[str, AfterValidator(check_field_name), Kind("the name of a header field")]
FieldValue = Annotated[SecretStr, AfterValidator(check_field_value)]


class BearerConfig(Settings):
    """`Authorization: Bearer …` (RFC 6750)."""

    token: FieldValue | None = Field(
        default=None, description="The token; keep it in a file: ${file:/etc/ndcollector/siem.token}."
    )
    token_file: ConfigPath | None = Field(
        default=None, description="A file that holds the token and that someone else renews; read anew when it changes."
    )
    scheme: str = Field(
        default="Bearer", pattern=r"^[A-Za-z][A-Za-z0-9-]{0,30}$", description="The word before the token."
    )

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.token is None) == (self.token_file is None):
            raise SettingError(("token",), "write either token or token_file")
        return self


class BasicConfig(Settings):
    """`Authorization: Basic …` (RFC 7617)."""

    username: str = Field(pattern=r"^[^:\x00-\x1f]+$", description="The name; it cannot hold a colon.")
    password: SecretStr = Field(description="Keep it in a file: ${file:/etc/ndcollector/siem.password}.")


class ApiKeyConfig(Settings):
    """A key in a header field of its own."""

    header: FieldName = Field(default="X-Api-Key", description="The header field that carries the key.")
    key: FieldValue = Field(description="Keep it in a file: ${file:/etc/ndcollector/siem.key}.")


class OAuth2Config(Settings):
    """Tokens by client credentials (RFC 6749, section 4.4), renewed before they run out."""

    token_url: str = Field(pattern=r"^https?://", description="Where tokens are had.")
    client_id: str = Field(min_length=1, description="Our name there.")
    client_secret: SecretStr = Field(description="Keep it in a file: ${file:/etc/ndcollector/oauth.secret}.")
    scope: str | None = Field(default=None, description="Where the server wants one.")
    audience: str | None = Field(default=None, description="Where the server wants one.")


class CredentialsConfig(Settings):
    """Who we are to the far side; one of these."""

    bearer: BearerConfig | None = Field(default=None, description="A token in the Authorization field.")
    basic: BasicConfig | None = Field(default=None, description="Name and password.")
    api_key: ApiKeyConfig | None = Field(default=None, description="A key in a header field.")
    oauth2: OAuth2Config | None = Field(default=None, description="A token from an authorisation server.")

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        named = [kind for kind in type(self).model_fields if getattr(self, kind) is not None]
        if len(named) != 1:
            key = named[1] if named else "bearer"
            raise SettingError((key,), "write exactly one of bearer, basic, api_key, oauth2")
        return self


class HmacConfig(Settings):
    """A signature over time and body, so that the receiver knows who sent it and that nobody changed it."""

    secret: SecretStr = Field(description="Shared with the receiver; ${file:/etc/ndcollector/hmac.secret}.")
    header: FieldName = Field(
        default="X-Signature", description="Gets `t=<Unix seconds>,<algorithm>=<hex>`; see docs/traffic.md."
    )
    algorithm: Literal["sha256", "sha512"] = Field(default="sha256", description="The hash inside the HMAC.")

    @model_validator(mode="after")
    def _has_a_secret(self) -> Self:
        if not self.secret.get_secret_value():
            raise SettingError(("secret",), "is empty; write the one that the receiver has")
        return self

"""How SNMPv3 users are written in a configuration, for those who send to us and for devices that we ask.

Promises: the defaults are SHA-256 and AES, and each needs its password; less is less only where it is written.
Passwords are SecretStr: no log line, no reference file shows one.
"""

from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, SecretStr, model_validator

from ndagent.core.settings import Kind, SettingError, Settings
from ndagent.core.snmp_usm import AuthName, PrivacyName, User, why_not

_PASSWORD_CHARACTERS = 8  # RFC 3414 §11.2
MIN_ENGINE_ID_BYTES, MAX_ENGINE_ID_BYTES = 5, 32  # RFC 3411 §5, SnmpEngineID


def _engine_id(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        found = bytes.fromhex(str(value).removeprefix("0x").replace(":", ""))
    except ValueError:
        found = b""
    if not MIN_ENGINE_ID_BYTES <= len(found) <= MAX_ENGINE_ID_BYTES:
        raise ValueError(f"{value!r} is not an engine id: 5 to 32 bytes in hexadecimal, such as 0x80001f8880c3a1")
    return found


def _user_name(value: str) -> str:
    if not 1 <= len(value.encode()) <= 32:  # RFC 3414 §5, usmUserName
        raise ValueError("a user's name is 1 to 32 bytes long")
    return value


EngineId = Annotated[
    bytes, BeforeValidator(_engine_id), PlainSerializer(lambda value: f"0x{value.hex()}", when_used="json"),
    Kind("an engine id in hexadecimal (0x80001f8880c3a1)"),
]  # fmt: skip


class UserConfig(Settings):
    """One SNMPv3 user."""

    name: Annotated[str, AfterValidator(_user_name)] = Field(description="The user's name (securityName).")
    auth: AuthName = Field(
        default="SHA-256", description='How messages are authenticated; "none" takes what anybody sends.'
    )
    auth_password: SecretStr | None = Field(
        default=None, description="For `auth`, 8 characters or more; keep it in a file: ${file:/etc/…/snmp.auth}."
    )
    privacy: PrivacyName = Field(default="AES", description='How messages are encrypted; "none" leaves them readable.')
    privacy_password: SecretStr | None = Field(default=None, description="For `privacy`, 8 characters or more.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        fault = why_not(self.auth, self.privacy)
        if fault is not None:
            raise SettingError(("privacy",), fault)
        for key, choice, password in (
            ("auth_password", self.auth, self.auth_password), ("privacy_password", self.privacy, self.privacy_password),
        ):  # fmt: skip
            protocol = key.partition("_")[0]
            if choice == "none" and password is not None:
                raise SettingError((key,), f"is of no use with {protocol}: none; take one of the two away")
            if choice != "none" and (password is None or len(password.get_secret_value()) < _PASSWORD_CHARACTERS):
                raise SettingError(
                    (key,), f"{protocol}: {choice} needs a password of {_PASSWORD_CHARACTERS} characters or more; "
                    f'write one, or {protocol}: "none"',
                )  # fmt: skip
        return self

    def user(self, *, engine_ids: frozenset[bytes] = frozenset()) -> User:
        """The user with keys; takes some milliseconds."""
        return User(
            self.name,
            auth=self.auth,
            auth_password=self.auth_password.get_secret_value() if self.auth_password else "",
            privacy=self.privacy,
            privacy_password=self.privacy_password.get_secret_value() if self.privacy_password else "",
            engine_ids=engine_ids,
        )

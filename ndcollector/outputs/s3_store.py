"""A bucket: create an object unless it is there, look at one; and what S3's errors mean.

Promises:
  * `create` never overwrites (If-None-Match: *), and a body that changed on the way is refused (x-amz-checksum-sha256);
  * success is believed of a store alone: it names the object's ETag, a login page does not;
  * one request a call (and those that learn the region of a bucket that is elsewhere): sending again is the machine's
    business, and it sees every answer;
  * whatever S3 answers that a person must act on is Unavailable and says what to do: no bucket, no permission, keys
    that are wrong, expired or missing, a clock that is off. The client is made anew after it, so that mended
    credentials are read; SlowDown and 5xx are Unavailable with the server's Retry-After; EntityTooLarge is Rejected.
    S3 judges no content, so nothing else is;
  * credentials are those of the settings, else what the AWS SDKs look for: environment, shared files, web identity,
    container, instance role; secrets are SecretStr.
Refuses: multipart uploads (objects are far below 5 GiB), and making buckets.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from typing import Any, Literal, NoReturn, Self

from aiohttp import ClientPayloadError
from pydantic import Field, SecretStr, model_validator

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.core.settings import ConfigPath, Duration, SettingError, Settings
from ndcollector import client_sockets
from ndcollector.outputs.s3_objects import CONTENT_TYPE, Packed

try:
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession
    from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError, NoCredentialsError
    from botocore.loaders import Loader
except ImportError as missing:
    raise ImportError(f"{missing}; pip install 'neurodefender-collector[s3]'") from missing

_KEYS = "check the credentials (access_key_id, secret_access_key, session_token, or what the environment gives)"
_REMEDIES = {
    "NoSuchBucket": "make the bucket, or correct `bucket`, `region` or `endpoint`",
    "AccessDenied": "allow s3:PutObject and s3:GetObject below the prefix (and the KMS key, where one is set)",
    "AllAccessDisabled": "the bucket's owner must enable it",
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "InvalidToken": _KEYS,
    "ExpiredToken": f"they have expired; {_KEYS}",
    "TokenRefreshRequired": f"they have expired; {_KEYS}",
    "RequestTimeTooSkewed": "set this machine's clock",
    "PermanentRedirect": "the bucket is in another region: correct `region` or `endpoint`",
    "AuthorizationHeaderMalformed": "the bucket is in another region: correct `region`",
    "IllegalLocationConstraintException": "the bucket is in another region: correct `region`",
    "InvalidBucketName": "correct `bucket`",
    "InvalidStorageClass": "correct `storage_class`",
    "NotImplemented": "the store lacks what the settings ask for: encryption, storage_class, or conditional create",
    "InvalidObjectState": "a person must look at the bucket",
}
_NO_STORE = "success without an ETag is no S3 store's: check `endpoint`, and what is in between"
_LATER = ("SlowDown", "RequestTimeout", "ConditionalRequestConflict", "OperationAborted", "InternalError")
_TOO_LARGE = ("EntityTooLarge", "MaxMessageLengthExceeded")
_MOST_READ_BYTES = 65 * 2**20  # an object of ours is at most 64 MiB, and less where that can be compressed


class EncryptionConfig(Settings):
    """Encryption of objects by the store; without it the bucket's own default holds."""

    algorithm: Literal["AES256", "aws:kms", "aws:kms:dsse"] = Field(description="AES256 is SSE-S3.")
    kms_key_id: str | None = Field(default=None, description="For aws:kms: key id or ARN; null means the account's.")

    @model_validator(mode="after")
    def _has_a_key_where_one_is_used(self) -> Self:
        if self.kms_key_id is not None and self.algorithm == "AES256":
            raise SettingError(("kms_key_id",), "AES256 uses none; write algorithm aws:kms, or leave it out")
        return self


class StoreConfig(Settings):
    """Where the bucket is, and who we are to it."""

    bucket: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{1,254}$", description="The bucket's name, or an ARN.")
    region: str | None = Field(default=None, description="AWS region; null: what the environment says, or us-east-1.")
    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/@]+/?$",
        description="Of another store that speaks S3, such as https://minio.example.net:9000; null means AWS.",
    )
    path_style: bool | None = Field(
        default=None,
        description="https://endpoint/bucket/key rather than https://bucket.endpoint/key; null: with an endpoint.",
    )
    ca_file: ConfigPath | None = Field(default=None, description="CA certificates (PEM); null means the usual ones.")
    access_key_id: str | None = Field(default=None, description="With secret_access_key; null: as the AWS SDKs do.")
    secret_access_key: SecretStr | None = Field(
        default=None, description="Keep it in a file: ${file:/etc/ndcollector/s3.secret}."
    )
    session_token: SecretStr | None = Field(default=None, description="Of temporary credentials.")
    profile: str | None = Field(default=None, description="Section of the AWS shared credentials and config files.")
    connect_timeout: Duration = Field(
        default=10.0, gt=0, description="A store that takes no connection by then counts as unavailable."
    )
    storage_class: str | None = Field(
        default=None, pattern=r"^[A-Z_]+$", description="Such as STANDARD_IA or GLACIER_IR; null: the store's default."
    )
    encryption: EncryptionConfig | None = Field(default=None, description="By the store; null: the bucket's default.")

    @model_validator(mode="after")
    def _has_whole_credentials(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            lacking = "access_key_id" if self.access_key_id is None else "secret_access_key"
            raise SettingError((lacking,), "is missing: the two come together")
        if self.session_token is not None and self.access_key_id is None:
            raise SettingError(("session_token",), "needs access_key_id and secret_access_key")
        if self.profile is not None and self.access_key_id is not None:
            raise SettingError(("profile",), "and access_key_id are two ways to say who we are; write one")
        return self


class _Connection:
    """A client, who uses it, and how it is closed."""

    def __init__(self, client: Any, opened: AsyncExitStack) -> None:
        self.client = client
        self.opened = opened
        self.users = 0
        self.is_retired = False


class Bucket:
    """See the module. Connects when it is first asked; may be asked by several tasks at a time."""

    def __init__(self, config: StoreConfig, *, timeout_seconds: float) -> None:
        self._config = config
        self._timeout_seconds = timeout_seconds
        self._connection: _Connection | None = None
        self._opening = asyncio.Lock()
        self._options = _put_options(config)

    async def create(self, key: str, packed: Packed) -> bool:
        """Whether the object was made: False if one is there. Raises Unavailable, and Rejected if it is too large."""
        async with self._asking(key) as client:
            try:
                found = await client.put_object(
                    Bucket=self._config.bucket,
                    Key=key,
                    Body=packed.body,
                    IfNoneMatch="*",
                    ContentType=CONTENT_TYPE,
                    ChecksumSHA256=base64.b64encode(packed.checksum).decode("ascii"),
                    Metadata=dict(packed.metadata),
                    **self._options,
                )
            except ClientError as error:
                if _status(error) == 412:
                    return False
                raise
        if not found.get("ETag"):
            raise Unavailable(f"s3://{self._config.bucket}/{key}: {_NO_STORE}")
        return True

    async def metadata(self, key: str) -> Mapping[str, str] | None:
        """Of an object that is there; None where we may not look. Raises Unavailable, also if it is gone."""
        async with self._asking(key) as client:
            try:
                found = await client.head_object(Bucket=self._config.bucket, Key=key)
            except ClientError as error:
                if _status(error) == 403:
                    return None
                if _status(error) == 404:
                    raise Unavailable(f"s3://{self._config.bucket}/{key} was there and is gone") from error
                raise
        return {name.lower(): str(value) for name, value in found["Metadata"].items()}

    async def read(self, key: str) -> bytes:
        """An object's bytes; empty where it is larger than one of ours. Raises Unavailable."""
        async with self._asking(key) as client:
            found = await client.get_object(Bucket=self._config.bucket, Key=key)
            async with found["Body"] as body:
                return bytes(await body.read()) if found["ContentLength"] <= _MOST_READ_BYTES else b""

    async def aclose(self) -> None:
        """Close the connections, whoever uses them; safe at any time."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.opened.aclose()

    @asynccontextmanager
    async def _asking(self, key: str) -> AsyncIterator[Any]:
        """A client, and its errors in our words."""
        place = f"s3://{self._config.bucket}/{key}"
        try:
            async with self._client() as connection:
                try:
                    yield connection.client
                except ClientError as error:
                    if 400 <= _status(error) < 500:
                        self._retire(connection)
                    _explain(error, place)
                except (NoCredentialsError, CredentialRetrievalError) as error:
                    self._retire(connection)
                    raise Unavailable(f"{place}: {error}; {_KEYS}") from error
        except (BotoCoreError, ClientPayloadError, OSError) as error:  # the second: an answer that was cut off
            raise Unavailable(f"{place}: {error}") from error
        except RecursionError:  # botocore asks for the region of a bucket that is elsewhere, is told "elsewhere" …
            raise Unavailable(f"{place}: {_REMEDIES['PermanentRedirect']}") from None

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[_Connection]:
        async with self._opening:
            connection = self._connection = self._connection or await self._connect()
        connection.users += 1
        try:
            yield connection
        finally:
            connection.users -= 1
            if connection.is_retired and not connection.users:
                await connection.opened.aclose()

    def _retire(self, connection: _Connection) -> None:
        """The next try has a client of its own, which reads credentials anew; who uses this one may end in peace."""
        connection.is_retired = True
        if self._connection is connection:
            self._connection = None

    async def _connect(self) -> _Connection:
        session = await asyncio.to_thread(_session, self._config.profile)
        region = self._config.region or session.get_config_variable("region") or "us-east-1"
        opened = AsyncExitStack()
        context = session.create_client("s3", region_name=region, **self._client_options())
        return _Connection(await opened.enter_async_context(context), opened)

    def _client_options(self) -> dict[str, Any]:
        config = self._config
        path_style = config.endpoint is not None if config.path_style is None else config.path_style
        return {
            "endpoint_url": config.endpoint,
            "aws_access_key_id": config.access_key_id,
            "aws_secret_access_key": _secret(config.secret_access_key),
            "aws_session_token": _secret(config.session_token),
            "verify": str(config.ca_file) if config.ca_file else None,
            "config": AioConfig(
                connect_timeout=config.connect_timeout,
                read_timeout=self._timeout_seconds,
                connector_args={"socket_factory": client_sockets.loop_owned},
                retries={"mode": "standard", "total_max_attempts": 1},
                request_checksum_calculation="when_required",  # others than AWS know no trailing checksums
                response_checksum_validation="when_required",
                s3={"addressing_style": "path" if path_style else "auto"},
            ),
        }


def _session(profile: str | None) -> AioSession:
    """Made in a thread, the first one at least: it reads megabytes of service descriptions."""
    session = AioSession(profile=profile)
    session.register_component("data_loader", _descriptions())
    return session


@cache
def _descriptions() -> Loader:
    """botocore's own, read once for the process and not once for each client."""
    loader = AioSession().get_component("data_loader")
    for name in ("service-2", "endpoint-rule-set-1", "paginators-1", "waiters-2"):
        loader.load_service_model("s3", name)
    for name in ("endpoints", "partitions", "sdk-default-configuration"):
        loader.load_data(name)
    return loader


def _secret(text: SecretStr | None) -> str | None:
    return None if text is None else text.get_secret_value()


def _put_options(config: StoreConfig) -> dict[str, str]:
    found = {"StorageClass": config.storage_class}
    if config.encryption is not None:
        found |= {"ServerSideEncryption": config.encryption.algorithm, "SSEKMSKeyId": config.encryption.kms_key_id}
    return {name: value for name, value in found.items() if value is not None}


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _explain(error: ClientError, place: str) -> NoReturn:
    """The error as the machine knows it: Unavailable or Rejected."""
    told = error.response.get("Error", {})
    code, text, status = str(told.get("Code", "")), str(told.get("Message", "")), _status(error)
    answer = f"{place}: {status} {code}: {text[:300]}"
    if code in _TOO_LARGE or status == 413:
        raise Rejected(answer, response=f"{status}\n{code}: {text}") from error
    if code in _LATER or status >= 500 or status == 429:
        raise Unavailable(answer, _retry_after(error)) from error
    remedy = _REMEDIES.get(code) or _BY_STATUS.get(status, "a person must look at it")
    raise Unavailable(f"{answer}; {remedy}") from error


_BY_STATUS = {301: _REMEDIES["PermanentRedirect"], 403: _REMEDIES["AccessDenied"], 404: _REMEDIES["NoSuchBucket"]}


def _retry_after(error: ClientError) -> float | None:
    text = str(error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")).strip()
    return float(text[:9]) if text.isascii() and text.isdecimal() else None

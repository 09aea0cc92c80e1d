"""Settings of whoever connects by TLS: whose certificates are believed, and which one of ours is shown."""

from typing import Self

from pydantic import Field, model_validator

from ndagent.core.settings import ConfigPath, SettingError, Settings


class ClientCertificateConfig(Settings):
    """A plug's `tls` section; it may say in words of its own what the far side is."""

    ca_file: ConfigPath | None = Field(
        default=None, description="CA certificates (PEM) that the far side's must come from; null means the system's."
    )
    cert_file: ConfigPath | None = Field(
        default=None, description="Our certificate and its intermediates (PEM), where the far side asks for one."
    )
    key_file: ConfigPath | None = Field(default=None, description="The key of cert_file (PEM, not encrypted).")

    @model_validator(mode="after")
    def _is_a_pair(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            missing = "key_file" if self.key_file is None else "cert_file"
            raise SettingError((missing,), "is missing: a certificate and its key come together")
        return self

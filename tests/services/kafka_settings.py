"""What a Kafka node is configured with, beyond its number, addresses and directory: see kafka.py.

Records are kept for ever unless a topic says otherwise: tests write some with timestamps of their own, which grow old.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization as form

SASL_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
BROKER = """
process.roles=broker,controller
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL
auto.create.topics.enable=true
broker.heartbeat.interval.ms=200
broker.session.timeout.ms=2000
controller.quorum.election.timeout.ms=500
controller.quorum.election.backoff.max.ms=200
controller.quorum.fetch.timeout.ms=1000
replica.lag.time.max.ms=2000
replica.socket.timeout.ms=2000
controlled.shutdown.enable=true
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
offsets.topic.num.partitions=2
transaction.state.log.num.partitions=2
num.network.threads=2
num.io.threads=2
background.threads=2
log.retention.check.interval.ms=1000
log.retention.ms=-1
log.cleaner.dedupe.buffer.size=8388608
"""
_SECURITY = """
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={ca}
listener.name.ssl.ssl.client.auth=required
listener.name.sasl_ssl.ssl.client.auth=none
sasl.enabled.mechanisms={mechanisms}
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required {users};
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.oauthbearer.sasl.jaas.config=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true
super.users=User:ANONYMOUS
"""


@dataclass(frozen=True)
class Security:
    """What the listeners SSL and SASL_SSL need: PEM files of a certificate for 127.0.0.1, and users' passwords."""

    ca: Path
    cert: Path
    key: Path
    users: Mapping[str, str] = field(default_factory=dict)

    def properties(self, directory: Path) -> str:
        """The brokers' part; writes their key store into the directory."""
        keystore = directory / "broker.pem"
        keystore.write_bytes(_pkcs8(self.key) + self.cert.read_bytes())
        users = " ".join(f'user_{name}="{password}"' for name, password in self.users.items())
        return _SECURITY.format(keystore=keystore, ca=self.ca, mechanisms=",".join(SASL_MECHANISMS), users=users)

    def scram_options(self) -> list[str]:
        """What `kafka-storage format` must be told: SCRAM's users stand in the cluster's metadata."""
        scram = [mechanism for mechanism in SASL_MECHANISMS if mechanism.startswith("SCRAM")]
        users = self.users.items()
        return [f"--add-scram={kind}=[name={name},password={password}]" for name, password in users for kind in scram]


def _pkcs8(key: Path) -> bytes:
    """The private key in the only form that Kafka's PEM key store reads."""
    loaded = form.load_pem_private_key(key.read_bytes(), None)
    return loaded.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())

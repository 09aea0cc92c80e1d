"""The running agent: builds every part from one configuration, keeps them running, and takes them down in order.

    inputs ──checkpoints──► spools ──► dispatcher ──► collector output        identity, status and policy beside them

Promises:
  * inputs are read and spooled from the first second, enrolled or not, collector or not: what happens before the agent
    can speak is told later;
  * a part that fails for a reason nobody foresaw is started again after a pause with jitter; the others go on;
  * a reload works whole or changes nothing; a policy is a reload with other settings;
  * a stop takes no more data, delivers for at most `shutdown_timeout`, and saves cursors and positions.
Refuses: knowing any plug by name (the registries do), exiting (__main__ does), making keys (enrolment.py).
"""

import asyncio
import logging
import random
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from ndagent import host
from ndagent.config import AgentConfig, load
from ndagent.core.checkpoints import Checkpoints
from ndagent.core.config_watch import saves
from ndagent.core.decoding import Decoding
from ndagent.core.deliveries import DeliveryBuilder, close
from ndagent.core.delivery import Delivery
from ndagent.core.dispatcher import Dispatcher
from ndagent.core.intake import Intake
from ndagent.core.ledger import Bookkeeper
from ndagent.core.metrics import Metrics
from ndagent.core.notify import Notifier
from ndagent.core.plugs import builder
from ndagent.core.spool import Spool, SpoolLocked, UnknownFormat
from ndagent.core.supervision import StartError, Supervised, in_words
from ndagent.core.waiting import first
from ndagent.core.yaml_file import ConfigError
from ndagent.inputs import INPUTS, InputContext
from ndagent.membership import Membership
from ndagent.outputs.collector import NAME, Collector
from ndagent.reporting import Reporter
from ndagent.uplink import build_collector
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch

log = logging.getLogger(__name__)

FIRST_STREAM = "security_events"
_FIXED = ("state_dir", "spool", "host_name")
"""Sections that only a restart changes: open files and identities hang on them."""

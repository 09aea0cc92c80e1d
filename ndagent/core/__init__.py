"""The machine agent and collector share: inputs, spool, outputs; nothing here knows a plug."""

from ndagent.core.timeouts import mend

mend()

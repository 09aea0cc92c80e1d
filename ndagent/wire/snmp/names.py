"""Names for the object identifiers that traps are usually made of: standard MIBs, Net-SNMP's, and vendors' best known.

Promises: a name is `MIB::object` with the instance behind it, as Net-SNMP writes it; where no name is known the number
stands for itself. Enumerations of the objects that link, BGP and configuration traps carry have their words.
Refuses: MIB files. A trap whose name is not here is an event all the same, and its vendor is known by its number.

A row is a MIB, where its objects hang, and their last numbers; a notification may be followed by what it is about (a
key of ABOUT; "network" where nothing is said).
"""

from functools import lru_cache
from typing import NamedTuple


class Named(NamedTuple):
    """An object: `name` with its MIB, and the words of its numbers."""

    name: str
    words: dict[int, str]


class About(NamedTuple):
    """What kind of event a notification is, in ECS' words."""

    category: str
    type: str
    outcome: str = ""


ABOUT = {
    "network": About("network", "info"),
    "start": About("host", "start"),
    "end": About("host", "end"),
    "host": About("host", "info"),
    "change": About("host", "change"),
    "config": About("configuration", "change"),
    "login": About("authentication", "start", "failure"),
    "session": About("session", "info"),
    "intrusion": About("intrusion_detection", "info"),
    "malware": About("malware", "info"),
}

_OBJECTS = """
SNMPv2-MIB 1.3.6.1.2.1.1 1 sysDescr 2 sysObjectID 3 sysUpTime 4 sysContact 5 sysName 6 sysLocation 7 sysServices
SNMPv2-MIB 1.3.6.1.6.3.1.1.4 1 snmpTrapOID 3 snmpTrapEnterprise
SNMP-COMMUNITY-MIB 1.3.6.1.6.3.18.1 3 snmpTrapAddress 4 snmpTrapCommunity
IF-MIB 1.3.6.1.2.1.2 1 ifNumber
IF-MIB 1.3.6.1.2.1.2.2.1 1 ifIndex 2 ifDescr 3 ifType 4 ifMtu 5 ifSpeed 6 ifPhysAddress 7 ifAdminStatus 8 ifOperStatus
IF-MIB 1.3.6.1.2.1.2.2.1 9 ifLastChange 10 ifInOctets 11 ifInUcastPkts 12 ifInNUcastPkts 13 ifInDiscards 14 ifInErrors
IF-MIB 1.3.6.1.2.1.2.2.1 15 ifInUnknownProtos 16 ifOutOctets 17 ifOutUcastPkts 18 ifOutNUcastPkts 19 ifOutDiscards
IF-MIB 1.3.6.1.2.1.2.2.1 20 ifOutErrors 21 ifOutQLen 22 ifSpecific
IF-MIB 1.3.6.1.2.1.31.1.1.1 1 ifName 2 ifInMulticastPkts 3 ifInBroadcastPkts 4 ifOutMulticastPkts 5 ifOutBroadcastPkts
IF-MIB 1.3.6.1.2.1.31.1.1.1 6 ifHCInOctets 7 ifHCInUcastPkts 8 ifHCInMulticastPkts 9 ifHCInBroadcastPkts
IF-MIB 1.3.6.1.2.1.31.1.1.1 10 ifHCOutOctets 11 ifHCOutUcastPkts 12 ifHCOutMulticastPkts 13 ifHCOutBroadcastPkts
IF-MIB 1.3.6.1.2.1.31.1.1.1 14 ifLinkUpDownTrapEnable 15 ifHighSpeed 16 ifPromiscuousMode 17 ifConnectorPresent
IF-MIB 1.3.6.1.2.1.31.1.1.1 18 ifAlias 19 ifCounterDiscontinuityTime
BGP4-MIB 1.3.6.1.2.1.15.3.1 1 bgpPeerIdentifier 2 bgpPeerState 3 bgpPeerAdminStatus 7 bgpPeerRemoteAddr
BGP4-MIB 1.3.6.1.2.1.15.3.1 9 bgpPeerRemoteAs 14 bgpPeerLastError
OSPF-MIB 1.3.6.1.2.1.14.1 1 ospfRouterId
OSPF-MIB 1.3.6.1.2.1.14.10.1 1 ospfNbrIpAddr 2 ospfNbrAddressLessIndex 3 ospfNbrRtrId 6 ospfNbrState
RMON-MIB 1.3.6.1.2.1.16.3.1.1 1 alarmIndex 3 alarmVariable 4 alarmSampleType 5 alarmValue 7 alarmRisingThreshold
RMON-MIB 1.3.6.1.2.1.16.3.1.1 8 alarmFallingThreshold
HOST-RESOURCES-MIB 1.3.6.1.2.1.25.1 1 hrSystemUptime 2 hrSystemDate 5 hrSystemNumUsers 6 hrSystemProcesses
HOST-RESOURCES-MIB 1.3.6.1.2.1.25.2.3.1 3 hrStorageDescr 4 hrStorageAllocationUnits 5 hrStorageSize 6 hrStorageUsed
HOST-RESOURCES-MIB 1.3.6.1.2.1.25.3.3.1 2 hrProcessorLoad
UPS-MIB 1.3.6.1.2.1.33.1.2 2 upsSecondsOnBattery 3 upsEstimatedMinutesRemaining 4 upsEstimatedChargeRemaining
UPS-MIB 1.3.6.1.2.1.33.1.6.2.1 1 upsAlarmId 2 upsAlarmDescr
ENTITY-MIB 1.3.6.1.2.1.47.1.1.1.1 2 entPhysicalDescr 4 entPhysicalContainedIn 5 entPhysicalClass 7 entPhysicalName
ENTITY-MIB 1.3.6.1.2.1.47.1.1.1.1 11 entPhysicalSerialNum 13 entPhysicalModelName
DISMAN-EVENT-MIB 1.3.6.1.2.1.88.2.1 1 mteHotTrigger 2 mteHotTargetName 3 mteHotContextName 4 mteHotOID 5 mteHotValue
DISMAN-EVENT-MIB 1.3.6.1.2.1.88.2.1 6 mteFailedReason
UCD-SNMP-MIB 1.3.6.1.4.1.2021.10.1 2 laNames 3 laLoad 5 laLoadInt 100 laErrorFlag 101 laErrMessage
UCD-SNMP-MIB 1.3.6.1.4.1.2021.9.1 2 dskPath 3 dskDevice 9 dskPercent 100 dskErrorFlag 101 dskErrorMsg
UCD-SNMP-MIB 1.3.6.1.4.1.2021.11 9 ssCpuUser 10 ssCpuSystem 11 ssCpuIdle
CISCO-CONFIG-MAN-MIB 1.3.6.1.4.1.9.9.43.1.1.6.1 2 ccmHistoryEventTime 3 ccmHistoryEventCommandSource
CISCO-CONFIG-MAN-MIB 1.3.6.1.4.1.9.9.43.1.1.6.1 4 ccmHistoryEventConfigSource 5 ccmHistoryEventConfigDestination
CISCO-CONFIG-MAN-MIB 1.3.6.1.4.1.9.9.43.1.1.6.1 6 ccmHistoryEventTerminalType 8 ccmHistoryEventTerminalUser
CISCO-SYSLOG-MIB 1.3.6.1.4.1.9.9.41.1.2.3.1 2 clogHistFacility 3 clogHistSeverity 4 clogHistMsgName 5 clogHistMsgText
CISCO-SYSLOG-MIB 1.3.6.1.4.1.9.9.41.1.2.3.1 6 clogHistTimestamp
JUNIPER-CFGMGMT-MIB 1.3.6.1.4.1.2636.3.18.1.7.1 2 jnxCmCfgChgEventTime 3 jnxCmCfgChgEventDate 4 jnxCmCfgChgEventSource
JUNIPER-CFGMGMT-MIB 1.3.6.1.4.1.2636.3.18.1.7.1 5 jnxCmCfgChgEventUser 6 jnxCmCfgChgEventLog
FORTINET-CORE-MIB 1.3.6.1.4.1.12356.100.1.1 1 fnSysSerial
FORTINET-CORE-MIB 1.3.6.1.4.1.12356.100.1.3.1 1 fnGenTrapMsg
F5-BIGIP-COMMON-MIB 1.3.6.1.4.1.3375.2.4.1 1 bigipNotifyObjMsg 2 bigipNotifyObjNode 3 bigipNotifyObjPort
"""

_NOTIFICATIONS = """
SNMPv2-MIB 1.3.6.1.6.3.1.1.5 1 coldStart/start 2 warmStart/start 5 authenticationFailure/login
IF-MIB 1.3.6.1.6.3.1.1.5 3 linkDown 4 linkUp
RFC1213-MIB 1.3.6.1.6.3.1.1.5 6 egpNeighborLoss
OSPF-TRAP-MIB 1.3.6.1.2.1.14.16.2 1 ospfVirtIfStateChange 2 ospfNbrStateChange 3 ospfVirtNbrStateChange
OSPF-TRAP-MIB 1.3.6.1.2.1.14.16.2 4 ospfIfConfigError 5 ospfVirtIfConfigError 6 ospfIfAuthFailure/login
OSPF-TRAP-MIB 1.3.6.1.2.1.14.16.2 7 ospfVirtIfAuthFailure/login 8 ospfIfRxBadPacket 16 ospfIfStateChange
BGP4-MIB 1.3.6.1.2.1.15.0 1 bgpEstablishedNotification 2 bgpBackwardTransNotification
BGP4-MIB 1.3.6.1.2.1.15.7 1 bgpEstablished 2 bgpBackwardTransition
RMON-MIB 1.3.6.1.2.1.16.0 1 risingAlarm 2 fallingAlarm
BRIDGE-MIB 1.3.6.1.2.1.17.0 1 newRoot 2 topologyChange
UPS-MIB 1.3.6.1.2.1.33.2 1 upsTrapOnBattery/host 2 upsTrapTestCompleted/host 3 upsTrapAlarmEntryAdded/host
UPS-MIB 1.3.6.1.2.1.33.2 4 upsTrapAlarmEntryRemoved/host
Printer-MIB 1.3.6.1.2.1.43.18.2.0 1 printerV2Alert/host
ENTITY-MIB 1.3.6.1.2.1.47.2.0 1 entConfigChange/change
VRRP-MIB 1.3.6.1.2.1.68.0 1 vrrpTrapNewMaster 2 vrrpTrapAuthFailure/login
DISMAN-PING-MIB 1.3.6.1.2.1.80.0 1 pingProbeFailed 2 pingTestFailed 3 pingTestCompleted
DISMAN-EVENT-MIB 1.3.6.1.2.1.88.2.0 1 mteTriggerFired/host 2 mteTriggerRising/host 3 mteTriggerFalling/host
DISMAN-EVENT-MIB 1.3.6.1.2.1.88.2.0 4 mteTriggerFailure/host 5 mteEventSetFailure/host
POWER-ETHERNET-MIB 1.3.6.1.2.1.105.0 1 pethPsePortOnOffNotification 2 pethMainPowerUsageOnNotification
POWER-ETHERNET-MIB 1.3.6.1.2.1.105.0 3 pethMainPowerUsageOffNotification
ENTITY-STATE-MIB 1.3.6.1.2.1.131.0 1 entStateOperEnabled/change 2 entStateOperDisabled/change
LLDP-MIB 1.0.8802.1.1.2.0.0 1 lldpRemTablesChange
NET-SNMP-AGENT-MIB 1.3.6.1.4.1.8072.4.0 1 nsNotifyStart/start 2 nsNotifyShutdown/end 3 nsNotifyRestart/start
UCD-SNMP-MIB 1.3.6.1.4.1.2021.251 1 ucdStart/start 2 ucdShutdown/end
CISCOTRAP-MIB 1.3.6.1.4.1.9.0 0 reload/start 1 tcpConnectionClose/session
CISCO-ENVMON-MIB 1.3.6.1.4.1.9.9.13.3.0 1 ciscoEnvMonShutdownNotification/end 2 ciscoEnvMonVoltageNotification/host
CISCO-ENVMON-MIB 1.3.6.1.4.1.9.9.13.3.0 3 ciscoEnvMonTemperatureNotification/host 4 ciscoEnvMonFanNotification/host
CISCO-ENVMON-MIB 1.3.6.1.4.1.9.9.13.3.0 5 ciscoEnvMonRedundantSupplyNotification/host
CISCO-SYSLOG-MIB 1.3.6.1.4.1.9.9.41.2.0 1 clogMessageGenerated/host
CISCO-CONFIG-MAN-MIB 1.3.6.1.4.1.9.9.43.2.0 1 ciscoConfigManEvent/config 2 ccmCLIRunningConfigChanged/config
CISCO-CONFIG-MAN-MIB 1.3.6.1.4.1.9.9.43.2.0 3 ccmCTIDRolledOver/config
CISCO-STP-EXTENSIONS-MIB 1.3.6.1.4.1.9.9.82.2.0 1 stpxInconsistencyUpdate 2 stpxRootInconsistencyUpdate
CISCO-STP-EXTENSIONS-MIB 1.3.6.1.4.1.9.9.82.2.0 3 stpxLoopInconsistencyUpdate
CISCO-HSRP-MIB 1.3.6.1.4.1.9.9.106.2.0 1 cHsrpStateChange
CISCO-PROCESS-MIB 1.3.6.1.4.1.9.9.109.2.0 1 cpmCPURisingThreshold/host 2 cpmCPUFallingThreshold/host
CISCO-ENTITY-FRU-CONTROL-MIB 1.3.6.1.4.1.9.9.117.2.0 1 cefcModuleStatusChange/change 2 cefcPowerStatusChange/change
CISCO-ENTITY-FRU-CONTROL-MIB 1.3.6.1.4.1.9.9.117.2.0 3 cefcFRUInserted/change 4 cefcFRURemoved/change
CISCO-PORT-SECURITY-MIB 1.3.6.1.4.1.9.9.315.0 1 cpsSecureMacAddrViolation/intrusion
PowerNet-MIB 1.3.6.1.4.1.318.0 1 communicationLost/host 2 upsOverload/host 3 upsDiagnosticsFailed/host
PowerNet-MIB 1.3.6.1.4.1.318.0 4 upsDischarged/host 5 upsOnBattery/host 7 lowBattery/host
PowerNet-MIB 1.3.6.1.4.1.318.0 8 communicationEstablished/host 9 powerRestored/host 10 upsDiagnosticsPassed/host
JUNIPER-MIB 1.3.6.1.4.1.2636.4.1 1 jnxPowerSupplyFailure/host 2 jnxFanFailure/host 3 jnxOverTemperature/host
JUNIPER-MIB 1.3.6.1.4.1.2636.4.1 4 jnxRedundancySwitchover/host 5 jnxFruRemoval/change 6 jnxFruInsertion/change
JUNIPER-MIB 1.3.6.1.4.1.2636.4.1 7 jnxFruPowerOff/change 8 jnxFruPowerOn/change 9 jnxFruFailed/host
JUNIPER-MIB 1.3.6.1.4.1.2636.4.1 10 jnxFruOffline/change 11 jnxFruOnline/change 12 jnxFruCheck/host
JUNIPER-MIB 1.3.6.1.4.1.2636.4.2 1 jnxPowerSupplyOK/host 2 jnxFanOK/host 3 jnxTemperatureOK/host
JUNIPER-CFGMGMT-MIB 1.3.6.1.4.1.2636.4.5.0 1 jnxCmCfgChange/config 2 jnxCmRescueChange/config
F5-BIGIP-COMMON-MIB 1.3.6.1.4.1.3375.2.4.0 1 bigipAgentStart/start 2 bigipAgentShutdown/end 3 bigipAgentRestart/start
F5-BIGIP-COMMON-MIB 1.3.6.1.4.1.3375.2.4.0 4 bigipCpuTempHigh/host 5 bigipCpuFanSpeedLow/host 6 bigipCpuFanSpeedBad/host
F5-BIGIP-COMMON-MIB 1.3.6.1.4.1.3375.2.4.0 10 bigipServiceDown 11 bigipServiceUp 12 bigipNodeDown 13 bigipNodeUp
F5-BIGIP-COMMON-MIB 1.3.6.1.4.1.3375.2.4.0 14 bigipStandby 15 bigipActive
F5-BIGIP-COMMON-MIB 1.3.6.1.4.1.3375.2.4.0 27 bigipAuthFailed/login 28 bigipConfigLoaded/config
F5-BIGIP-COMMON-MIB 1.3.6.1.4.1.3375.2.4.0 38 bigipAsmRequestBlocked/intrusion 39 bigipAsmRequestViolation/intrusion
FORTINET-CORE-MIB 1.3.6.1.4.1.12356.100.1.3.0 101 fnTrapCpuThreshold/host 102 fnTrapMemThreshold/host
FORTINET-CORE-MIB 1.3.6.1.4.1.12356.100.1.3.0 103 fnTrapLogDiskThreshold/host 104 fnTrapTempHigh/host
FORTINET-CORE-MIB 1.3.6.1.4.1.12356.100.1.3.0 105 fnTrapVoltageOutOfRange/host 106 fnTrapPowerSupplyFailure/host
FORTINET-CORE-MIB 1.3.6.1.4.1.12356.100.1.3.0 201 fnTrapIpChange 999 fnTrapTest
FORTINET-FORTIGATE-MIB 1.3.6.1.4.1.12356.101.2.0 301 fgTrapVpnTunUp 302 fgTrapVpnTunDown 401 fgTrapHaSwitch/host
FORTINET-FORTIGATE-MIB 1.3.6.1.4.1.12356.101.2.0 402 fgTrapHaStateChange/host 403 fgTrapHaHBFail/host
FORTINET-FORTIGATE-MIB 1.3.6.1.4.1.12356.101.2.0 404 fgTrapHaMemberDown/host 405 fgTrapHaMemberUp/host
FORTINET-FORTIGATE-MIB 1.3.6.1.4.1.12356.101.2.0 503 fgTrapIpsSignature/intrusion 504 fgTrapIpsAnomaly/intrusion
FORTINET-FORTIGATE-MIB 1.3.6.1.4.1.12356.101.2.0 505 fgTrapIpsPkgUpdate/change 601 fgTrapAvVirus/malware
FORTINET-FORTIGATE-MIB 1.3.6.1.4.1.12356.101.2.0 602 fgTrapAvOversize/malware
"""

_CONFIGS = "erase commandSource running startup local networkTftp networkRcp networkFtp networkScp"
_WORDS = {
    "IF-MIB::ifAdminStatus": "up down testing",
    "IF-MIB::ifOperStatus": "up down testing unknown dormant notPresent lowerLayerDown",
    "BGP4-MIB::bgpPeerState": "idle connect active opensent openconfirm established",
    "OSPF-MIB::ospfNbrState": "down attempt init twoWay exchangeStart exchange loading full",
    "CISCO-CONFIG-MAN-MIB::ccmHistoryEventCommandSource": "commandLine snmp",
    "CISCO-CONFIG-MAN-MIB::ccmHistoryEventConfigSource": _CONFIGS,
    "CISCO-CONFIG-MAN-MIB::ccmHistoryEventConfigDestination": _CONFIGS,
    "CISCO-SYSLOG-MIB::clogHistSeverity": "emergency alert critical error warning notice info debug",
}
"""The first stands for 1."""

_VENDORS = """
9 Cisco,11 Hewlett-Packard,43 3Com,171 D-Link,232 Compaq,311 Microsoft,318 APC,343 Intel,476 Vertiv,534 Eaton,674 Dell,
789 NetApp,890 Zyxel,1588 Brocade,1916 Extreme Networks,1991 Foundry,2011 Huawei,2021 UCD-SNMP,2435 Brother,
2604 Sophos,2620 Check Point,2636 Juniper,3375 F5,3902 ZTE,4526 Netgear,5951 Citrix NetScaler,6574 Synology,
6876 VMware,6889 Avaya,8072 Net-SNMP,8741 SonicWall,9694 Arbor,12356 Fortinet,14179 Airespace,14823 Aruba,
14988 MikroTik,15497 IronPort,24681 QNAP,25053 Ruckus,25461 Palo Alto Networks,25506 H3C,30065 Arista,
33049 Mellanox,41112 Ubiquiti
"""
_ENTERPRISES = "1.3.6.1.4.1."
_REMEMBERED = 4096


def _rows(table: str) -> dict[str, tuple[str, str]]:
    """Whole number → (MIB, what is written behind it)."""
    found: dict[str, tuple[str, str]] = {}
    for line in table.split("\n"):
        mib, _, rest = line.partition(" ")
        root, _, rest = rest.partition(" ")
        words = rest.split()
        found |= {f"{root}.{number}": (mib, name) for number, name in zip(words[::2], words[1::2], strict=True)}
    return found


def _objects() -> dict[str, Named]:
    named = {}
    for number, (mib, name) in _rows(_OBJECTS).items():
        whole = f"{mib}::{name}"
        named[number] = Named(whole, dict(enumerate(_WORDS.get(whole, "").split(), 1)))
    return named


_NAMED = _objects()
_NOTICES = {
    number: (mib, name.partition("/")[0], ABOUT[name.partition("/")[2] or "network"])
    for number, (mib, name) in _rows(_NOTIFICATIONS).items()
}
_DEPTHS = sorted({number.count(".") + 1 for number in _NAMED}, reverse=True)
_VENDOR = dict(entry.strip().split(" ", 1) for entry in _VENDORS.replace("\n", "").split(","))


@lru_cache(_REMEMBERED)
def object_name(oid: str) -> tuple[str, Named | None]:
    """What to call a varbind, and what is known of its object; its number where that is nothing."""
    arcs = oid.split(".")
    for depth in _DEPTHS:
        if depth < len(arcs):
            known = _NAMED.get(".".join(arcs[:depth]))
            if known is not None:
                return f"{known.name}.{'.'.join(arcs[depth:])}", known
    return oid, None


def notification(oid: str) -> tuple[str, str, About]:
    """MIB, name and kind of a notification; "", "" and a guess where it is not known."""
    return _NOTICES.get(oid, ("", "", ABOUT["network"]))


def vendor(oid: str) -> str:
    """Whose branch an identifier lies in; empty where not known."""
    if not oid.startswith(_ENTERPRISES):
        return ""
    return _VENDOR.get(oid[len(_ENTERPRISES) :].partition(".")[0], "")


def value_name(oid: str) -> str:
    """An object identifier that is a value (of snmpTrapOID, of sysObjectID), in words where it has some."""
    mib, name, _ = notification(oid)
    return f"{mib}::{name}" if name else object_name(oid)[0]

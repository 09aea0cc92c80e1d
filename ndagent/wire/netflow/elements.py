"""Information elements: what IANA's registry calls the fields of IPFIX (and so of NetFlow v5 and v9), and their types.

Promises: `element` knows a name and a kind for every field there is; one that is not in the table is octets and called
`e<enterprise>_<id>`. The names are those of https://www.iana.org/assignments/ipfix; below 128 they are
Cisco's of v9, too. Elements of the reverse direction (RFC 5103, enterprise 29305) are named after theirs.
Refuses: elements of enterprises; their numbers mean what their vendors say.
"""

from enum import Enum
from functools import cache
from typing import NamedTuple

IANA = 0
REVERSE = 29305
"""RFC 5103 §6.1: the enterprise number under which an element tells of a biflow's way back."""
SCOPE = -1
"""Stands for an enterprise in the scope fields of NetFlow v9, which have numbers of their own (RFC 3954 §6.1)."""


class Kind(Enum):
    """An abstract data type (RFC 7011 §6.1), as far as it is written differently."""

    UNSIGNED = "u"
    SIGNED = "i"
    FLOAT = "f"
    BOOLEAN = "b"
    STRING = "s"
    IPV4 = "4"
    IPV6 = "6"
    MAC = "m"
    OCTETS = "o"
    SECONDS = "S"
    MILLISECONDS = "M"
    MICROSECONDS = "U"
    NANOSECONDS = "N"
    PADDING = "x"


class Element(NamedTuple):
    """A field's name and kind."""

    name: str
    kind: Kind


# A number, a kind, and the names of this and the following numbers.
_REGISTRY = """
1 u octetDeltaCount packetDeltaCount deltaFlowCount protocolIdentifier ipClassOfService tcpControlBits
7 u sourceTransportPort
8 4 sourceIPv4Address
9 u sourceIPv4PrefixLength ingressInterface destinationTransportPort
12 4 destinationIPv4Address
13 u destinationIPv4PrefixLength egressInterface
15 4 ipNextHopIPv4Address
16 u bgpSourceAsNumber bgpDestinationAsNumber
18 4 bgpNextHopIPv4Address
19 u postMCastPacketDeltaCount postMCastOctetDeltaCount flowEndSysUpTime flowStartSysUpTime postOctetDeltaCount
24 u postPacketDeltaCount minimumIpTotalLength maximumIpTotalLength
27 6 sourceIPv6Address destinationIPv6Address
29 u sourceIPv6PrefixLength destinationIPv6PrefixLength flowLabelIPv6 icmpTypeCodeIPv4 igmpType samplingInterval
35 u samplingAlgorithm flowActiveTimeout flowIdleTimeout engineType engineId exportedOctetTotalCount
41 u exportedMessageTotalCount exportedFlowRecordTotalCount
43 4 ipv4RouterSc sourceIPv4Prefix destinationIPv4Prefix
46 u mplsTopLabelType
47 4 mplsTopLabelIPv4Address
48 u samplerId samplerMode samplerRandomInterval classId minimumTTL maximumTTL fragmentIdentification
55 u postIpClassOfService
56 m sourceMacAddress postDestinationMacAddress
58 u vlanId postVlanId ipVersion flowDirection
62 6 ipNextHopIPv6Address bgpNextHopIPv6Address
64 u ipv6ExtensionHeaders
70 o mplsTopLabelStackSection mplsLabelStackSection2 mplsLabelStackSection3 mplsLabelStackSection4
74 o mplsLabelStackSection5 mplsLabelStackSection6 mplsLabelStackSection7 mplsLabelStackSection8
78 o mplsLabelStackSection9 mplsLabelStackSection10
80 m destinationMacAddress postSourceMacAddress
82 s interfaceName interfaceDescription samplerName
85 u octetTotalCount packetTotalCount flagsAndSamplerId fragmentOffset forwardingStatus
90 o mplsVpnRouteDistinguisher
91 u mplsTopLabelPrefixLength srcTrafficIndex dstTrafficIndex
94 s applicationDescription
95 o applicationId
96 s applicationName
98 u postIpDiffServCodePoint multicastReplicationFactor
100 s className
101 u classificationEngineId layer2packetSectionOffset layer2packetSectionSize
104 o layer2packetSectionData
128 u bgpNextAdjacentAsNumber bgpPrevAdjacentAsNumber
130 4 exporterIPv4Address
131 6 exporterIPv6Address
132 u droppedOctetDeltaCount droppedPacketDeltaCount droppedOctetTotalCount droppedPacketTotalCount
136 u flowEndReason commonPropertiesId observationPointId icmpTypeCodeIPv6
140 6 mplsTopLabelIPv6Address
141 u lineCardId portId meteringProcessId exportingProcessId templateId wlanChannelId
147 s wlanSSID
148 u flowId observationDomainId
150 S flowStartSeconds flowEndSeconds
152 M flowStartMilliseconds flowEndMilliseconds
154 U flowStartMicroseconds flowEndMicroseconds
156 N flowStartNanoseconds flowEndNanoseconds
158 u flowStartDeltaMicroseconds flowEndDeltaMicroseconds
160 M systemInitTimeMilliseconds
161 u flowDurationMilliseconds flowDurationMicroseconds observedFlowTotalCount ignoredPacketTotalCount
165 u ignoredOctetTotalCount notSentFlowTotalCount notSentPacketTotalCount notSentOctetTotalCount
169 6 destinationIPv6Prefix sourceIPv6Prefix
171 u postOctetTotalCount postPacketTotalCount flowKeyIndicator postMCastPacketTotalCount
175 u postMCastOctetTotalCount icmpTypeIPv4 icmpCodeIPv4 icmpTypeIPv6 icmpCodeIPv6 udpSourcePort
181 u udpDestinationPort tcpSourcePort tcpDestinationPort tcpSequenceNumber tcpAcknowledgementNumber
186 u tcpWindowSize tcpUrgentPointer tcpHeaderLength ipHeaderLength totalLengthIPv4 payloadLengthIPv6 ipTTL
193 u nextHeaderIPv6 mplsPayloadLength ipDiffServCodePoint ipPrecedence fragmentFlags octetDeltaSumOfSquares
199 u octetTotalSumOfSquares mplsTopLabelTTL mplsLabelStackLength mplsLabelStackDepth mplsTopLabelExp
204 u ipPayloadLength udpMessageLength isMulticast ipv4IHL ipv4Options tcpOptions
210 x paddingOctets
211 4 collectorIPv4Address
212 6 collectorIPv6Address
213 u exportInterface exportProtocolVersion exportTransportProtocol collectorTransportPort exporterTransportPort
218 u tcpSynTotalCount tcpFinTotalCount tcpRstTotalCount tcpPshTotalCount tcpAckTotalCount tcpUrgTotalCount
224 u ipTotalLength
225 4 postNATSourceIPv4Address postNATDestinationIPv4Address
227 u postNAPTSourceTransportPort postNAPTDestinationTransportPort natOriginatingAddressRealm natEvent
231 u initiatorOctets responderOctets firewallEvent ingressVRFID egressVRFID
236 s VRFname
237 u postMplsTopLabelExp tcpWindowScale biflowDirection ethernetHeaderLength ethernetPayloadLength
242 u ethernetTotalLength dot1qVlanId dot1qPriority dot1qCustomerVlanId dot1qCustomerPriority
247 s metroEvcId
248 u metroEvcType pseudoWireId pseudoWireType pseudoWireControlWord ingressPhysicalInterface
253 u egressPhysicalInterface postDot1qVlanId postDot1qCustomerVlanId ethernetType postIpPrecedence
258 M collectionTimeMilliseconds
259 u exportSctpStreamId
260 S maxExportSeconds maxFlowEndSeconds
262 o messageMD5Checksum
263 u messageScope
264 S minExportSeconds minFlowStartSeconds
266 o opaqueOctets
267 u sessionScope
268 U maxFlowEndMicroseconds
269 M maxFlowEndMilliseconds
270 N maxFlowEndNanoseconds
271 U minFlowStartMicroseconds
272 M minFlowStartMilliseconds
273 N minFlowStartNanoseconds
274 o collectorCertificate exporterCertificate
276 b dataRecordsReliability
277 u observationPointType newConnectionDeltaCount connectionSumDurationSeconds connectionTransactionId
281 6 postNATSourceIPv6Address postNATDestinationIPv6Address
283 u natPoolId
284 s natPoolName
285 u anonymizationFlags anonymizationTechnique informationElementIndex
288 s p2pTechnology tunnelTechnology encryptedTechnology
291 o basicList subTemplateList subTemplateMultiList
294 u bgpValidityState IPSecSPI greKey natType initiatorPackets responderPackets
300 s observationDomainName
301 u selectionSequenceId selectorId informationElementId selectorAlgorithm samplingPacketInterval
306 u samplingPacketSpace samplingTimeInterval samplingTimeSpace samplingSize samplingPopulation
311 f samplingProbability
312 u dataLinkFrameSize
313 o ipHeaderPacketSection ipPayloadPacketSection dataLinkFrameSection mplsLabelStackSection
317 o mplsPayloadPacketSection
318 u selectorIdTotalPktsObserved selectorIdTotalPktsSelected
320 f absoluteError relativeError
322 S observationTimeSeconds
323 M observationTimeMilliseconds
324 U observationTimeMicroseconds
325 N observationTimeNanoseconds
326 u digestHashValue hashIPPayloadOffset hashIPPayloadSize hashOutputRangeMin hashOutputRangeMax
331 u hashSelectedRangeMin hashSelectedRangeMax
333 b hashDigestOutput
334 u hashInitialiserValue
335 s selectorName
336 f upperCILimit lowerCILimit confidenceLevel
339 u informationElementDataType
340 s informationElementDescription informationElementName
342 u informationElementRangeBegin informationElementRangeEnd informationElementSemantics
345 u informationElementUnits privateEnterpriseNumber
347 o virtualStationInterfaceId
348 s virtualStationInterfaceName
349 o virtualStationUUID
350 s virtualStationName
351 u layer2SegmentId layer2OctetDeltaCount layer2OctetTotalCount ingressUnicastPacketTotalCount
355 u ingressMulticastPacketTotalCount ingressBroadcastPacketTotalCount egressUnicastPacketTotalCount
358 u egressBroadcastPacketTotalCount
361 u portRangeStart portRangeEnd portRangeStepSize portRangeNumPorts
365 m staMacAddress
366 4 staIPv4Address
367 m wtpMacAddress
368 u ingressInterfaceType egressInterfaceType rtpSequenceNumber
371 s userName applicationCategoryName applicationSubCategoryName applicationGroupName
375 u originalFlowsPresent originalFlowsInitiated originalFlowsCompleted distinctCountOfSourceIPAddress
379 u distinctCountOfDestinationIPAddress distinctCountOfSourceIPv4Address distinctCountOfDestinationIPv4Address
382 u distinctCountOfSourceIPv6Address distinctCountOfDestinationIPv6Address
459 s httpRequestMethod httpRequestHost httpRequestTarget httpMessageVersion
463 u natInstanceID
464 o internalAddressRealm externalAddressRealm
466 u natQuotaExceededEvent natThresholdEvent
468 s httpUserAgent httpContentType httpReasonPhrase
"""
_SCOPES = ("scopeSystem", "scopeInterface", "scopeLineCard", "scopeCache", "scopeTemplate")  # RFC 3954 §6.1, from 1


def _read() -> dict[int, Element]:
    found: dict[int, Element] = {}
    for line in _REGISTRY.strip().splitlines():
        first, kind, *names = line.split()
        found |= {int(first) + at: Element(name, Kind(kind)) for at, name in enumerate(names)}
    return found


ELEMENTS = _read()
"""IANA's elements by number."""
_SCOPE_ELEMENTS = {number: Element(name, Kind.UNSIGNED) for number, name in enumerate(_SCOPES, 1)}


@cache
def _reverse() -> dict[int, Element]:
    return {
        number: Element(f"reverse{name[0].upper()}{name[1:]}", kind)
        for number, (name, kind) in ELEMENTS.items()
        if kind is not Kind.PADDING
    }


def element(enterprise: int, number: int) -> Element:
    """The element of that number; an enterprise's own are octets."""
    tables = {IANA: ELEMENTS, SCOPE: _SCOPE_ELEMENTS}
    table = _reverse() if enterprise == REVERSE else tables.get(enterprise, {})
    prefix = "scope" if enterprise == SCOPE else f"e{enterprise}_"
    return table.get(number) or Element(f"{prefix}{number}", Kind.OCTETS)

"""What a Windows event says was done, and where its data goes in ECS: a table of events, and one of sets of fields.

The words of event.action, event.category and event.type are those that Elastic's documents of its Windows integrations
and ECS have; OCSF's classes (Authentication, Account Change, Group Management, Process Activity …) agree with the
categories. Who is who: `user` is who acted or who logged on, `user.target` the account that was changed (ECS, "user
field usage"), `user.effective` whose rights are used after (4648, 4688). An event that is not here has no action and no
category: nothing is guessed.

Adding an event is a row in `_EVENTS`; its fields are sets of `_FIELDS`, applied in order, where the first value stands.
"""

from typing import NamedTuple

_PROVIDERS = {
    "microsoft-windows-security-auditing": "security",
    "microsoft-windows-eventlog": "eventlog",
    "eventlog": "eventlog",
    "service control manager": "services",
    "microsoft-windows-sysmon": "sysmon",
    "linux-sysmon": "sysmon",
    "microsoft-windows-powershell": "powershell",
    "powershellcore": "powershell",
}

_EVENTS = """
security 4624 | logged-in | authentication | start | target_logon logon_type logon_process origin
security 4625 | logon-failed | authentication | start | target_logon logon_type logon_process logon_failure origin
security 4634 4647 | logged-out | authentication | end | target_logon logon_type
security 4648 | logged-in-explicit | authentication | start | subject effective logon_process target_server origin
security 4672 | logged-in-special | iam | admin | subject privileges
security 4673 4674 | privileged-operation | iam | admin | subject caller_process privileges
security 4688 | created-process | process | start | subject effective new_process
security 4689 | exited-process | process | end | subject exit_process
security 4697 | service-installed | iam configuration | admin change | subject service_installed
security 4698 | scheduled-task-created | iam configuration | creation admin | subject
security 4699 | scheduled-task-deleted | iam configuration | deletion admin | subject
security 4700 | scheduled-task-enabled | iam configuration | change admin | subject
security 4701 | scheduled-task-disabled | iam configuration | change admin | subject
security 4702 | scheduled-task-updated | iam configuration | change admin | subject
security 4719 | changed-audit-config | iam configuration | admin change | subject
security 4720 | added-user-account | iam | user creation | subject target_user
security 4722 | enabled-user-account | iam | user change | subject target_user
security 4723 | changed-password | iam | user change | subject target_user
security 4724 | reset-password | iam | user change | subject target_user
security 4725 | disabled-user-account | iam | user change | subject target_user
security 4726 | deleted-user-account | iam | user deletion | subject target_user
security 4727 4731 4754 | added-group-account | iam | group creation | subject target_group
security 4728 4732 4756 | added-member-to-group | iam | group change | subject target_group member
security 4729 4733 4757 | removed-member-from-group | iam | group change | subject target_group member
security 4730 4734 4758 | deleted-group-account | iam | group deletion | subject target_group
security 4735 4737 4755 | modified-group-account | iam | group change | subject target_group
security 4738 | modified-user-account | iam | user change | subject target_user
security 4740 | locked-out-user-account | iam | user change | subject target_user lockout_origin
security 4767 | unlocked-user-account | iam | user change | subject target_user
security 4768 | kerberos-authentication-ticket-requested | authentication | start | target_logon kerberos origin
security 4769 | kerberos-service-ticket-requested | authentication | start | target_logon kerberos origin
security 4770 | kerberos-service-ticket-renewed | authentication | start | target_logon kerberos origin
security 4771 | kerberos-preauth-failed | authentication | start | target_logon kerberos origin
security 4776 | credential-validated | authentication | start | target_logon validation
security 4778 | session-reconnected | authentication session | start | account
security 4779 | session-disconnected | authentication session | end | account
security 4781 | renamed-user-account | iam | user change | subject renamed_user
security 4798 | group-membership-enumerated | iam | user info | subject target_user caller_process
security 4799 | user-member-enumerated | iam | group info | subject target_group caller_process
security 5140 5145 | network-share-accessed | network file | access | subject origin share
eventlog 1100 | logging-service-shutdown | process | end |
eventlog 1102 | audit-log-cleared | iam | admin change | subject
eventlog 1104 | logging-full | iam | admin |
eventlog 104 | log-cleared | configuration | deletion | subject
eventlog 6005 | event-log-started | host | start |
eventlog 6006 | event-log-stopped | host | end |
eventlog 6008 | unexpected-shutdown | host | end |
services 7045 | service-installed | configuration | creation | system_service
services 7036 | service-state-changed | configuration | change | service_state
services 7040 | service-start-type-changed | configuration | change | service_state
sysmon 1 | created-process | process | start | sysmon_user sysmon_new_process rule
sysmon 2 | changed-file-time | file | change | sysmon_user sysmon_process sysmon_file rule
sysmon 3 | network-connection | network | connection start protocol | sysmon_user sysmon_process connection rule
sysmon 4 | changed-service-state | process | change | rule
sysmon 5 | exited-process | process | end | sysmon_user sysmon_process rule
sysmon 6 | loaded-driver | driver | start | loaded rule
sysmon 7 | loaded-image | process | change | sysmon_user sysmon_process loaded rule
sysmon 8 | created-remote-thread | process | change | sysmon_source rule
sysmon 9 | raw-disk-read | process | access | sysmon_user sysmon_process rule
sysmon 10 | accessed-process | process | access | sysmon_source rule
sysmon 11 | created-file | file | creation | sysmon_user sysmon_process sysmon_file rule
sysmon 12 14 | changed-registry-key | configuration registry | change | sysmon_user sysmon_process registry rule
sysmon 13 | set-registry-value | configuration registry | change | sysmon_user sysmon_process registry rule
sysmon 15 | created-file-stream | file | access | sysmon_user sysmon_process sysmon_file file_hash rule
sysmon 16 | changed-configuration | configuration | change | rule
sysmon 17 | created-pipe | file | creation | sysmon_user sysmon_process pipe rule
sysmon 18 | connected-pipe | file | access | sysmon_user sysmon_process pipe rule
sysmon 22 | dns-query | network | connection protocol info | sysmon_user sysmon_process dns rule
sysmon 23 26 | deleted-file | file | deletion | sysmon_user sysmon_process sysmon_file file_hash rule
powershell 4103 | executed-pipeline | process | info | pipeline
powershell 4104 | executed-script-block | process | info | script_block
"""
"""provider ids | event.action | event.category | event.type | sets of fields"""

_FIELDS = """
subject | SubjectUserSid | user.id | sid
subject | SubjectUserName | user.name | name
subject | SubjectDomainName | user.domain | name
subject | SubjectLogonId | winlog.logon.id | name
target_logon | TargetUserSid TargetSid | user.id | sid
target_logon | TargetUserName | user.name | name
target_logon | TargetDomainName | user.domain | name
target_logon | TargetLogonId SubjectLogonId | winlog.logon.id | name
effective | TargetUserSid | user.effective.id | sid
effective | TargetUserName | user.effective.name | name
effective | TargetDomainName | user.effective.domain | name
target_user | TargetSid TargetUserSid | user.target.id | sid
target_user | TargetUserName | user.target.name | name
target_user | TargetDomainName | user.target.domain | name
renamed_user | TargetSid | user.target.id | sid
renamed_user | OldTargetUserName | user.target.name | name
renamed_user | NewTargetUserName | user.changes.name | name
renamed_user | TargetDomainName | user.target.domain | name
target_group | TargetSid | group.id | sid
target_group | TargetUserName | group.name | name
target_group | TargetDomainName | group.domain | name
member | MemberSid | user.target.id | sid
member | MemberName | user.target.name | common_name
member | MemberName | user.target.domain | distinguished_domain
account | AccountName | user.name | name
account | AccountDomain | user.domain | name
account | LogonID | winlog.logon.id | name
account | ClientName | source.domain | name
account | ClientAddress | source.ip | ip
logon_type | LogonType | winlog.logon.type | logon_type
logon_process | ProcessId | process.pid | pid
logon_process | ProcessName | process.executable | path
logon_process | ProcessName | process.name | basename
logon_failure | Status | winlog.logon.failure.status | status
logon_failure | SubStatus | winlog.logon.failure.sub_status | status
logon_failure | SubStatus Status | event.reason | reason
origin | IpAddress | source.ip | ip
origin | IpPort | source.port | port
origin | WorkstationName | source.domain | name
target_server | TargetServerName | destination.domain | name
lockout_origin | TargetDomainName | source.domain | name
validation | Workstation | source.domain | name
validation | Status | winlog.logon.failure.status | failed_status
validation | Status | event.reason | reason
kerberos | ServiceName | service.name | name
kerberos | TicketEncryptionType | winlog.event_data.TicketEncryptionTypeDescription | encryption
kerberos | Status FailureCode | winlog.event_data.StatusDescription | kerberos
privileges | PrivilegeList | winlog.event_data.PrivilegeNames | words
caller_process | ProcessId CallerProcessId | process.pid | pid
caller_process | ProcessName CallerProcessName | process.executable | path
caller_process | ProcessName CallerProcessName | process.name | basename
new_process | NewProcessId | process.pid | pid
new_process | NewProcessName | process.executable | path
new_process | NewProcessName | process.name | basename
new_process | CommandLine | process.command_line | text
new_process | ProcessId | process.parent.pid | pid
new_process | ParentProcessName | process.parent.executable | path
new_process | ParentProcessName | process.parent.name | basename
exit_process | ProcessId | process.pid | pid
exit_process | ProcessName | process.executable | path
exit_process | ProcessName | process.name | basename
exit_process | Status | process.exit_code | exit_code
service_installed | ServiceName | service.name | name
service_installed | ServiceFileName | process.executable | path
service_installed | ServiceStartType | winlog.event_data.ServiceStartTypeDescription | service_start
system_service | ServiceName | service.name | name
system_service | ImagePath | process.executable | path
service_state | param1 | service.name | name
service_state | param2 | service.state | name
share | ShareName | file.share | name
share | RelativeTargetName | file.path | path
sysmon_user | User | user.domain | user_domain
sysmon_user | User | user.name | user_name
sysmon_process | ProcessGuid | process.entity_id | guid
sysmon_process | ProcessId | process.pid | pid
sysmon_process | Image | process.executable | path
sysmon_process | Image | process.name | basename
sysmon_source | SourceUser | user.domain | user_domain
sysmon_source | SourceUser | user.name | user_name
sysmon_source | SourceProcessGuid SourceProcessGUID | process.entity_id | guid
sysmon_source | SourceProcessId | process.pid | pid
sysmon_source | SourceImage | process.executable | path
sysmon_source | SourceImage | process.name | basename
sysmon_source | SourceThreadId | process.thread.id | pid
sysmon_source | NewThreadId | process.thread.id | pid
sysmon_new_process | ProcessGuid | process.entity_id | guid
sysmon_new_process | ProcessId | process.pid | pid
sysmon_new_process | Image | process.executable | path
sysmon_new_process | Image | process.name | basename
sysmon_new_process | CommandLine | process.command_line | text
sysmon_new_process | CurrentDirectory | process.working_directory | path
sysmon_new_process | Hashes | process.hash | hashes
sysmon_new_process | OriginalFileName | process.pe.original_file_name | name
sysmon_new_process | Company | process.pe.company | name
sysmon_new_process | Description | process.pe.description | name
sysmon_new_process | FileVersion | process.pe.file_version | name
sysmon_new_process | Product | process.pe.product | name
sysmon_new_process | LogonId | winlog.logon.id | name
sysmon_new_process | ParentProcessGuid | process.parent.entity_id | guid
sysmon_new_process | ParentProcessId | process.parent.pid | pid
sysmon_new_process | ParentImage | process.parent.executable | path
sysmon_new_process | ParentImage | process.parent.name | basename
sysmon_new_process | ParentCommandLine | process.parent.command_line | text
sysmon_file | TargetFilename | file.path | path
sysmon_file | TargetFilename | file.name | basename
sysmon_file | TargetFilename | file.directory | dirname
sysmon_file | TargetFilename | file.extension | extension
file_hash | Hashes Hash | file.hash | hashes
loaded | ImageLoaded | dll.path | path
loaded | ImageLoaded | dll.name | basename
loaded | Hashes | dll.hash | hashes
loaded | Signed | dll.code_signature.exists | boolean
loaded | Signature | dll.code_signature.subject_name | name
loaded | SignatureStatus | dll.code_signature.status | name
loaded | OriginalFileName | dll.pe.original_file_name | name
connection | Protocol | network.transport | lower
connection | SourceIp | source.ip | ip
connection | SourcePort | source.port | port
connection | SourceHostname | source.domain | name
connection | DestinationIp | destination.ip | ip
connection | DestinationPort | destination.port | port
connection | DestinationHostname | destination.domain | name
connection | DestinationPortName | network.protocol | name
connection | Initiated | network.direction | direction
connection | SourceIsIpv6 | network.type | ip_version
registry | TargetObject | registry.path | path
registry | TargetObject | registry.hive | hive
registry | TargetObject | registry.key | key
registry | TargetObject | registry.value | basename
registry | Details | registry.data.strings | one
pipe | PipeName | file.name | name
dns | QueryName | dns.question.name | name
dns | QueryResults | dns.resolved_ip | resolved
dns | QueryResults | dns.answers | answers
dns | QueryStatus | winlog.event_data.QueryStatus | name
rule | RuleName | rule.name | name
pipeline | ContextInfo | user.domain | context_domain
pipeline | ContextInfo | user.name | context_user
pipeline | ContextInfo | process.command_line | context_application
pipeline | ContextInfo | powershell.command.name | context_command
script_block | ScriptBlockText | powershell.file.script_block_text | text
script_block | ScriptBlockId | powershell.file.script_block_id | name
script_block | MessageNumber | powershell.sequence | number
script_block | MessageTotal | powershell.total | number
script_block | Path | file.path | path
script_block | Path | file.name | basename
script_block | Path | file.directory | dirname
"""
"""set | names in the data, the first that has a value | ECS field | how it is read (see winevent_values.py)"""


class Copy(NamedTuple):
    """One value of the data and its place."""

    sources: tuple[str, ...]
    path: tuple[str, ...]
    reader: str


class Meaning(NamedTuple):
    """What an event is, in ECS words, and the fields it fills."""

    action: str
    categories: tuple[str, ...]
    types: tuple[str, ...]
    copies: tuple[Copy, ...]


def _sets() -> dict[str, list[Copy]]:
    found: dict[str, list[Copy]] = {}
    for row in _FIELDS.strip().splitlines():
        name, sources, path, reader = (cell.strip() for cell in row.split("|"))
        found.setdefault(name, []).append(Copy(tuple(sources.split()), tuple(path.split(".")), reader))
    return found


def _events() -> dict[tuple[str, str], Meaning]:
    sets, found = _sets(), {}
    for row in _EVENTS.strip().splitlines():
        names, action, categories, types, fields = (cell.split() for cell in row.split("|"))
        copies = tuple(copy for name in fields for copy in sets[name])
        meaning = Meaning(action[0], tuple(categories), tuple(types), copies)
        provider, *codes = names
        found.update({(provider, code): meaning for code in codes})
    return found


_MEANINGS = _events()


def meaning_of(provider: str, code: str) -> Meaning | None:
    """What the table has for this provider's event."""
    known = _PROVIDERS.get(provider.lower())
    return _MEANINGS.get((known, code)) if known else None

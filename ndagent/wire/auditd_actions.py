"""What an audit event says was done, in ECS words: event.action, event.category, event.type by record type or syscall.

The categories are ECS' own lists (event.category, event.type of ECS 8); actions are verbs of ours, past tense, with a
hyphen. A type that is not here gets its own name as action and no category: nothing is guessed.
"""

from typing import NamedTuple


class Action(NamedTuple):
    """`verb` is event.action; the two tuples are event.category and event.type."""

    verb: str
    categories: tuple[str, ...] = ()
    types: tuple[str, ...] = ()


def _table(text: str) -> dict[str, Action]:
    """Rows of `names | verb | categories | types`, the names and the lists separated by blanks."""
    found: dict[str, Action] = {}
    for row in text.strip().splitlines():
        names, verb, categories, types = (cell.split() for cell in row.split("|"))
        action = Action(verb[0], tuple(categories), tuple(types))
        found.update(dict.fromkeys(names, action))
    return found


BY_TYPE = _table("""
USER_LOGIN | logged-in | authentication | start
USER_LOGOUT | logged-out | authentication | end
USER_AUTH | authenticated | authentication | info
USER_ACCT | authorized | authentication | info
USER_START | started-session | session | start
USER_END | ended-session | session | end
USER_CHAUTHTOK | changed-password | iam | user change
USER_CMD | ran-command | process | start
USER_ERR | failed-authentication | authentication | info
USER_ROLE_CHANGE ROLE_ASSIGN ROLE_REMOVE | changed-role | iam | user change
USER_MGMT CHUSER_ID | modified-user | iam | user change
USER_SELINUX_ERR USER_AVC USER_MAC_POLICY_LOAD | reported-mac-event | configuration | info
CRED_ACQ | acquired-credentials | authentication | info
CRED_DISP | disposed-credentials | authentication | info
CRED_REFR | refreshed-credentials | authentication | info
LOGIN | changed-login-id | authentication | start
ADD_USER | added-user | iam | user creation
DEL_USER | deleted-user | iam | user deletion
ADD_GROUP | added-group | iam | group creation
DEL_GROUP | deleted-group | iam | group deletion
GRP_MGMT GRP_AUTH GRP_CHAUTHTOK CHGRP_ID | modified-group | iam | group change
ACCT_LOCK RESP_ACCT_LOCK RESP_ACCT_LOCK_TIMED | locked-account | iam | user change
ACCT_UNLOCK RESP_ACCT_UNLOCK_TIMED | unlocked-account | iam | user change
SERVICE_START | started-service | process | start
SERVICE_STOP | stopped-service | process | end
SYSTEM_BOOT | booted-system | host | start
SYSTEM_SHUTDOWN | shut-down-system | host | end
SYSTEM_RUNLEVEL | changed-runlevel | host | change
DAEMON_START | started-audit | process configuration | start
DAEMON_END DAEMON_ABORT | ended-audit | process configuration | end
DAEMON_CONFIG DAEMON_ROTATE DAEMON_RESUME | changed-audit-configuration | configuration | change
DAEMON_ERR | failed-audit | process | error
CONFIG_CHANGE | changed-audit-configuration | configuration | change
SOFTWARE_UPDATE | updated-software | package | change
AVC | checked-mac-access | process | info
MAC_POLICY_LOAD MAC_CONFIG_CHANGE MAC_STATUS | changed-mac-configuration | configuration | change
SECCOMP | violated-seccomp-policy | process | info
NETFILTER_CFG | changed-firewall | configuration network | change
ANOM_PROMISCUOUS | changed-promiscuous-mode | network configuration | change
ANOM_ABEND | crashed-program | process | end
ANOM_LINK | followed-suspicious-link | file | access
ANOM_LOGIN_FAILURES ANOM_LOGIN_LOCATION ANOM_LOGIN_SESSIONS ANOM_LOGIN_TIME | reported-login-anomaly | authentication | info
INTEGRITY_DATA INTEGRITY_METADATA INTEGRITY_STATUS INTEGRITY_RULE | checked-integrity | file | info
KERN_MODULE | changed-kernel-module | driver | change
TTY USER_TTY | typed | process | info
BPF | changed-bpf-program | configuration | change
TIME_INJOFFSET TIME_ADJNTPVAL | changed-time | host configuration | change
""")  # noqa: E501 - a table
"""By the record that tells most (see PRIMARY in auditd_ecs.py)."""

BY_SYSCALL = _table("""
execve execveat | executed | process | start
fork vfork clone clone3 | forked | process | start
exit exit_group | exited | process | end
kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal | signalled | process | change
ptrace process_vm_readv process_vm_writev | traced | process | access
open openat openat2 creat open_by_handle_at | opened-file | file | access
read pread64 readv | read-file | file | access
write pwrite64 writev truncate ftruncate fallocate | wrote-file | file | change
unlink unlinkat | deleted | file | deletion
rmdir | deleted-directory | file | deletion
rename renameat renameat2 | renamed | file | change
mkdir mkdirat | created-directory | file | creation
mknod mknodat | created-node | file | creation
link linkat symlink symlinkat | linked | file | creation
chmod fchmod fchmodat | changed-permissions | file | change
chown fchown lchown fchownat | changed-ownership | file | change
setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr | changed-attributes | file | change
utime utimes futimesat utimensat | changed-timestamp | file | change
stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat | checked-file | file | info
chdir fchdir | changed-directory | process | change
chroot pivot_root | changed-root | process | change
connect | connected | network | connection start
accept accept4 | accepted | network | connection start
bind | bound | network | info
listen | listened | network | info
sendto sendmsg sendmmsg | sent | network | info
recvfrom recvmsg recvmmsg | received | network | info
socket | opened-socket | network | info
setuid seteuid setreuid setresuid setfsuid setgid setegid setregid setresgid setfsgid setgroups | changed-identity | process | change
capset | changed-capabilities | process | change
init_module finit_module | loaded-kernel-module | driver | start
delete_module | unloaded-kernel-module | driver | end
mount move_mount fsmount | mounted | host | change
umount2 | unmounted | host | change
sethostname setdomainname | changed-hostname | host configuration | change
settimeofday clock_settime adjtimex clock_adjtime | changed-time | host configuration | change
reboot kexec_load kexec_file_load | rebooted | host | change
bpf | changed-bpf-program | configuration | change
swapon swapoff | changed-swap | host configuration | change
unshare setns | changed-namespace | process | change
""")  # noqa: E501 - a table

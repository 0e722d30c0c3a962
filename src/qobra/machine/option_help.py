"""What the parameters of the option groups are for, and what they are if not given, for query-command-line-options."""

from __future__ import annotations

from qobra.machine.option_groups import GROUPS

_OPERATION = {"total": "reads and writes together", "read": "reads", "write": "writes"}
_UNIT = {"iops": "requests", "bps": "bytes"}


def _throttling(kind: str, direction: str) -> dict[str, str]:
    key, what = f"throttling.{kind}-{direction}", f"{_UNIT[kind]} a second, {_OPERATION[direction]}"
    return {
        key: f"how many {what}, may pass in the long run",
        f"{key}-max": f"how many {what}, may pass in a burst",
        f"{key}-max-length": f"for how many seconds a burst of {_OPERATION[direction]} may last, {_UNIT[kind]} counted",
    }


_ADDRESSES = {
    "to": "the last number that may be used instead where others are taken",
    "ipv4": "whether addresses of IPv4 are used",
    "ipv6": "whether addresses of IPv6 are used",
}

HELP: dict[str, dict[str, str]] = {
    "action": {
        "reboot": "what a guest that restarts does: reset or shutdown",
        "shutdown": "what a guest that switches itself off does: poweroff or pause",
        "panic": "what happens to a guest that panics: pause, shutdown, exit-failure or none",
        "watchdog": "what a watchdog that has run out does: reset, shutdown, poweroff, pause, debug, none, inject-nmi",
    },
    "add-fd": {
        "fd": "the number of the file descriptor that is passed",
        "set": "the number of the set that it is put into",
        "opaque": "a text to know it by",
    },
    "boot-opts": {
        "order": "letters of the drives that are booted from, in this order",
        "once": "the same for the first start alone",
        "menu": "whether the firmware offers a choice",
        "splash": "a picture that the firmware shows meanwhile",
        "splash-time": "for how many milliseconds it is shown",
        "reboot-timeout": "after how many milliseconds a guest that finds nothing to boot tries again; -1: never",
        "strict": "whether only what has a bootindex is booted from",
    },
    "chardev": {
        "backend": "what kind of character device it is",
        "path": "the file, device or Unix socket",
        "host": "the host to connect to, or whose address is listened at",
        "port": "the port there",
        "fd": "a file descriptor that is a socket already",
        "localaddr": "the own address, for datagrams",
        "localport": "the own port, for datagrams",
        **_ADDRESSES,
        "wait": "whether the start waits for a client",
        "server": "whether it listens, and does not connect",
        "delay": "whether small pieces may wait to be sent together",
        "nodelay": "whether small pieces are sent at once",
        "reconnect": "after how many seconds a broken connection is made again; 0: never",
        "telnet": "whether telnet is spoken",
        "tn3270": "whether telnet for 3270 terminals is spoken",
        "tls-creds": "the object with the credentials for TLS",
        "tls-authz": "the object that says whose certificates are welcome",
        "websocket": "whether WebSocket is spoken",
        "mux": "whether several users share it",
        "signal": "whether the terminal's keys for signals have their effect",
        "size": "bytes of a ring buffer, a power of two",
        "chardev": "the device that another name is for",
        "append": "whether the file is added to, and not begun anew",
        "logfile": "a file that all output is copied to",
        "logappend": "whether that file is added to, and not begun anew",
        "tight": "whether the address of an abstract socket ends with its name",
        "abstract": "whether the Unix socket has a name that is in no file system",
    },
    "drive": {
        "node-name": "the name of the node",
        "driver": "the block driver",
        "cache.direct": "whether the host's page cache is gone around",
        "cache.no-flush": "whether flushes are ignored",
        "cache.writeback": "whether the guest is told of a cache that it has to flush",
        "auto-read-only": "whether it is read-only where it cannot be written to",
        "discard": "what becomes of what the guest discards: ignore or unmap",
        "force-share": "whether others may write to it meanwhile",
        "snapshot": "whether writes go to a temporary overlay",
        "aio": "how the host is asked: threads, native or io_uring",
        "format": "the image format, or help for a list of them",
        "werror": "what a failed write does: report, ignore, enospc or stop",
        "rerror": "what a failed read does: report, ignore or stop",
        **{
            key: text
            for kind in _UNIT
            for direction in _OPERATION
            for key, text in _throttling(kind, direction).items()
        },
        "throttling.iops-size": "up to how many bytes count as one request",
        "throttling.group": "the name of the group whose members share the limits",
        "detect-zeroes": "whether zeroes that are written become holes: off, on or unmap",
        "bus": "the number of the bus",
        "unit": "the number of the unit on it",
        "index": "the number among all drives of the interface",
        "media": "disk or cdrom",
        "if": "the interface: ide, scsi, sd, mtd, floppy, pflash, virtio, xen or none",
        "file": "the image",
        "read-only": "whether it cannot be written to",
        "copy-on-read": "whether what is read from backing files is kept in the image",
        "stats-account-invalid": "whether requests that cannot be are in the statistics",
        "stats-account-failed": "whether requests that failed are in the statistics",
    },
    "fw_cfg": {
        "name": "what the guest finds it by",
        "file": "the file that holds it",
        "string": "the text that it is",
    },
    "global": {
        "driver": "the type of device",
        "property": "the property of all such devices",
        "value": "what it is unless a device says otherwise",
    },
    "icount": {
        "shift": "how long an instruction is taken to last, as a power of two in nanoseconds, or auto",
        "sleep": "whether time passes as it does outside while the guest idles",
    },
    "machine": {
        "type": "the board",
        "accel": "the accelerators to try, in this order",
        "kernel": "the kernel's image",
        "initrd": "the first file system of the kernel",
        "append": "the kernel's command line",
        "dtb": "the device tree for the kernel",
        "firmware": "the firmware's image",
        "dump-guest-core": "whether guest memory is in core dumps of the process",
        "mem-merge": "whether the host may merge equal pages of guest memory",
        "dumpdtb": "a file that the device tree is written to, which is all that is done",
        "usb": "whether the board has a USB controller",
        "graphics": "whether firmware and kernel use the display",
        "memory-backend": "the object that is the guest's memory",
        "nvdimm": "whether the board takes NVDIMMs",
        "nvdimm-persistence": "up to where NVDIMMs keep what is written: cpu or mem-ctrl",
    },
    "memory": {
        "size": "guest memory at the start",
        "slots": "how many memory devices can be added",
        "maxmem": "how much memory there may be with these",
    },
    "mon": {
        "mode": "readline for people or control for QMP",
        "chardev": "the character device that it is at",
        "pretty": "whether its JSON is put in lines",
    },
    "msg": {
        "timestamp": "whether messages begin with the time",
        "guest-name": "whether messages begin with the guest's name",
    },
    "name": {
        "guest": "the guest's name",
        "process": "the name of the process",
        "debug-threads": "whether threads have names of their own",
    },
    "option-rom": {
        "romfile": "the image of the ROM",
        "bootindex": "its place among what is booted from",
    },
    "overcommit": {"mem-lock": "whether all memory of the process stays in the host's memory"},
    "rtc": {
        "base": "the date at the start: utc, localtime or a date",
        "clock": "what drives it: host, rt or vm",
        "driftfix": "whether lost interrupts are made up for: none or slew",
    },
    "sandbox": {
        "enable": "whether system calls are filtered",
        "obsolete": "whether obsolete system calls are allowed: allow or deny",
        "elevateprivileges": "whether the process may gain privileges: allow, deny or children",
        "spawn": "whether it may start programs: allow or deny",
        "resourcecontrol": "whether it may change priorities and affinities: allow or deny",
    },
    "smp-opts": {
        "cpus": "how many CPUs there are at the start",
        "sockets": "how many sockets the board has",
        "dies": "how many dies are in a socket",
        "clusters": "how many clusters are in a die",
        "cores": "how many cores are in a cluster",
        "threads": "how many threads a core has",
        "maxcpus": "how many CPUs there may be with those that are added",
    },
    "trace": {
        "enable": "the events to trace, as a name or pattern",
        "events": "a file with such names and patterns",
        "file": "the file that traces go to",
    },
    "vnc": {
        "vnc": "where the server listens, HOST:DISPLAY or unix:PATH",
        "audiodev": "the audio backend that clients may hear",
        "sasl": "whether clients say by SASL who they are",
        "sasl-authz": "the object that says which users of SASL are welcome",
        "tls-creds": "the object with the credentials for TLS",
        "tls-authz": "the object that says whose certificates are welcome",
        "reverse": "whether the server connects to a client that listens",
        "password": "whether clients need the password that is set by QMP",
        "password-secret": "the object that holds the password",
        **_ADDRESSES,
        "connections": "how many clients may be on their way in",
        "display": "the device whose display is shown",
        "head": "which of that device's displays it is",
        "share": "who has the screen for itself: allow-exclusive, force-shared or ignore",
        "websocket": "where browsers' clients are taken: on, PORT or HOST:PORT",
    },
}
"""By group and parameter."""

_DEFAULTS: dict[str, dict[str, str]] = {
    "boot-opts": {"strict": "off"},
    "chardev": {"tight": "on"},
    "drive": {"copy-on-read": "off", "snapshot": "off"},
    "memory": {"slots": "0"},
    "msg": {"timestamp": "off"},
    "rtc": {"base": "utc", "clock": "host"},
    "vnc": {"connections": "32", "share": "allow-exclusive"},
}


def describe(group: str) -> list[dict[str, str]]:
    """CommandLineParameterInfo of each parameter of ``group``."""
    described = []
    for name, kind in GROUPS[group]:
        info = {"name": name, "type": kind, "help": HELP[group][name]}
        default = _DEFAULTS.get(group, {}).get(name)
        described.append(info if default is None else info | {"default": default})
    return described

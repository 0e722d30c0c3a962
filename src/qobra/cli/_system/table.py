"""The options of the system programs: what each is called, whether it takes a value, and one line of help."""

from __future__ import annotations

import os

from qobra.errors import QobraError

# Name, whether it takes a value, help. Names that are the same option stand in ALIASES.
OPTIONS: dict[str, tuple[bool, str]] = {
    "h": (False, "show this help and exit"),
    "version": (False, "show the version and exit"),
    "machine": (True, "[type=]NAME[,PROPERTY=VALUE...]: the board"),
    "accel": (True, "[accel=]NAME: what runs the CPUs; qtest runs none"),
    "cpu": (True, "MODEL: the model of the CPUs"),
    "smp": (True, "[cpus=]N[,maxcpus=N][,sockets=N][,dies=N][,cores=N][,threads=N]"),
    "m": (True, "[size=]SIZE[,slots=N,maxmem=SIZE]: memory, in MiB without a suffix"),
    "mem-path": (True, "FILE: memory from a file"),
    "mem-prealloc": (False, "touch all memory at the start"),
    "numa": (True, "node|cpu|dist|hmat-lb|hmat-cache,...: NUMA topology"),
    "add-fd": (True, "fd=FD,set=SET[,opaque=TEXT]: an inherited descriptor for /dev/fdset/SET"),
    "set": (True, "GROUP.ID.KEY=VALUE: set a parameter of an option given before"),
    "global": (True, "DRIVER.PROPERTY=VALUE: another default for a device's property"),
    "boot": (True, "[order=]DRIVES[,once=DRIVES][,menu=on|off][,strict=on|off]"),
    "object": (True, "TYPE,id=ID[,PROPERTY=VALUE...]: an object (object-add)"),
    "blockdev": (True, "DRIVER,node-name=NAME[,...]: a block node (blockdev-add)"),
    "drive": (True, "[file=FILE][,if=TYPE][,id=ID][,...]: a disk image and its drive"),
    "hda": (True, "FILE: IDE disk 0"),
    "hdb": (True, "FILE: IDE disk 1"),
    "hdc": (True, "FILE: IDE disk 2"),
    "hdd": (True, "FILE: IDE disk 3"),
    "cdrom": (True, "FILE: a CD-ROM"),
    "fda": (True, "FILE: floppy disk 0"),
    "fdb": (True, "FILE: floppy disk 1"),
    "sd": (True, "FILE: an SD card"),
    "pflash": (True, "FILE: a parallel flash image"),
    "snapshot": (False, "write to temporary files instead of the images"),
    "device": (True, "DRIVER[,id=ID][,bus=BUS][,PROPERTY=VALUE...]: a device (device_add)"),
    "netdev": (True, "TYPE,id=ID[,...]: a network backend (netdev_add)"),
    "nic": (True, "[TYPE|none][,model=MODEL][,mac=ADDRESS]: a network card with its backend"),
    "net": (True, "none|nic|TYPE: the old way to name network cards and backends"),
    "chardev": (True, "BACKEND,id=ID[,...]: a character device (chardev-add)"),
    "tpmdev": (True, "emulator|passthrough,id=ID[,...]: what a TPM device has its commands carried out by"),
    "audiodev": (True, "none|wav,id=ID[,path=FILE][,out.frequency=HERTZ]...: where sound cards play to"),
    "audio": (True, "none|wav,model=hda|ac97[,...]: a sound card that plays there"),
    "serial": (True, "DEVICE: a serial port on a character device"),
    "parallel": (True, "DEVICE: a parallel port on a character device (x86)"),
    "debugcon": (True, "DEVICE: what is written to port E9h goes to a character device (x86)"),
    "monitor": (True, "DEVICE: a monitor for people"),
    "qmp": (True, "DEVICE: a QMP monitor"),
    "qmp-pretty": (True, "DEVICE: a QMP monitor that indents"),
    "mon": (True, "[chardev=]ID[,mode=readline|control][,pretty=on|off]: a monitor"),
    "kernel": (True, "FILE: start this kernel"),
    "initrd": (True, "FILE: its initial RAM disk"),
    "append": (True, "TEXT: its command line"),
    "dtb": (True, "FILE: its device tree"),
    "bios": (True, "FILE: the firmware"),
    "L": (True, "DIRECTORY: where to look for firmware"),
    "acpitable": (True, "file=FILE|data=FILE[,sig=NAME][,rev=N][,oem_id=ID]...: an ACPI table (x86)"),
    "smbios": (True, "file=FILE|type=N[,FIELD=VALUE...]: what the tables of the hardware say (x86)"),
    "option-rom": (True, "[romfile=]FILE[,bootindex=N]: a ROM that the firmware runs"),
    "fw_cfg": (True, "[name=]NAME,file=FILE|string=TEXT: a firmware configuration file"),
    "icount": (True, "[shift=]N|auto[,align=on|off][,sleep=on|off]: how the guest's time passes"),
    "rtc": (True, "[base=utc|localtime|DATE][,clock=host|rt|vm][,driftfix=none|slew]"),
    "uuid": (True, "UUID: of the machine"),
    "name": (True, "[guest=]NAME[,process=NAME][,debug-threads=on|off]"),
    "S": (False, "do not start: wait for cont"),
    "preconfig": (False, "wait for x-exit-preconfig before the board is made"),
    "incoming": (True, "ADDRESS|defer: wait for a migration"),
    "only-migratable": (False, "refuse devices whose state no migration can take along"),
    "loadvm": (True, "TAG: begin with a snapshot of the machine"),
    "action": (True, "[reboot=...][,shutdown=...][,panic=...][,watchdog=...]: what follows events"),
    "no-reboot": (False, "exit instead of rebooting"),
    "no-shutdown": (False, "stop instead of exiting at a shutdown"),
    "watchdog-action": (True, "reset|shutdown|poweroff|inject-nmi|pause|debug|none"),
    "nodefaults": (False, "no default devices"),
    "no-user-config": (False, "read no configuration of the user; there is none"),
    "readconfig": (True, "FILE: take options from a file"),
    "nographic": (False, "no display; serial port and monitor on standard input and output"),
    "full-screen": (False, "taken for the sake of scripts: there is no window"),
    "k": (True, "LAYOUT: taken for the sake of scripts: displays send the places of keys"),
    "echr": (True, "CODE: the key that leads to the commands of a shared serial port, instead of Ctrl-A"),
    "display": (True, "none|vnc=ADDRESS[,...]: who is shown the picture"),
    "vnc": (
        True,
        "[HOST]:DISPLAY|unix:PATH|none[,password=on][,tls-creds=ID][,websocket=on]...: show the screen",
    ),
    "vga": (True, "none|std|virtio: the graphics card"),
    "usb": (False, "a USB controller"),
    "usbdevice": (True, "keyboard|mouse|tablet: a USB device, and a controller for it"),
    "no-acpi": (False, "no ACPI"),
    "no-fd-bootchk": (False, "do not have the firmware check what a diskette is to boot"),
    "no-hpet": (False, "no HPET"),
    "qtest": (True, "DEVICE: serve the qtest protocol"),
    "qtest-log": (True, "FILE: log of the qtest protocol"),
    "daemonize": (False, "go into the background once everything is up"),
    "pidfile": (True, "FILE: write the process ID there"),
    "runas": (True, "USER|UID:GID: become this user once everything is open"),
    "chroot": (True, "DIRECTORY: make it the root once everything is open"),
    "sandbox": (
        True,
        "on|off[,obsolete=...][,elevateprivileges=...][,spawn=...][,resourcecontrol=allow|deny]: refuse system calls",
    ),
    "msg": (True, "[timestamp=on|off][,guest-name=on|off]: what precedes messages"),
    "overcommit": (True, "[mem-lock=on|off][,cpu-pm=on|off]"),
    "trace": (True, "[enable=]PATTERN[,events=FILE][,file=FILE]: print trace events; 'help' lists them"),
    "d": (True, "ITEM[,ITEM...]: what to log; trace:PATTERN for trace events; 'help' lists the items"),
    "D": (True, "FILE: log there instead of standard error"),
    "enable-kvm": (False, "the same as -accel kvm"),
}

_ALIASES = {"help": "h", "?": "h", "M": "machine", "enable-fips": "no-user-config"}


def scan(arguments: list[str]) -> list[tuple[str, str]]:
    """The options as (name, value), in their order. Raises QobraError in QEMU's words."""
    options: list[tuple[str, str]] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if not argument.startswith("-") or argument == "-":
            options.append(("hda", argument))  # a disk image without an option
            continue
        name = argument[2:] if argument.startswith("--") else argument[1:]
        name = _ALIASES.get(name, name)
        if name not in OPTIONS:
            raise QobraError(f"{argument}: invalid option")
        value = ""
        if OPTIONS[name][0]:
            if position == len(arguments):
                raise QobraError(f"{argument}: requires an argument")
            value = arguments[position]
            position += 1
        options.append((name, value))
    return options


def help_text(program: str) -> str:
    """What ``-h`` prints."""
    lines = [f"usage: {os.path.basename(program)} [options] [disk image]", ""]
    for name, (_takes_value, text) in OPTIONS.items():
        lines.append(f"  -{name:<16} {text}")
    return "\n".join(lines) + "\n"

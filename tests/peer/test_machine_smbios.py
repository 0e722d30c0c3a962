"""What SMBIOS tells of a PC, by default and as users want it: byte for byte the same as with QEMU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qobra.testing.guest import firmware_file
from qobra.testing.system import SystemProgram, peer_available

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_UUID, _OTHER_UUID = "12345678-1234-5678-9abc-def012345678", "00112233-4455-6677-8899-aabbccddeeff"
_STRUCTURE = b"\x01\x1b\x42\x00" + bytes(range(23)) + b"text\0more\0\0"
_FILES = {
    "one": _STRUCTURE,
    "other": b"\x80\x06\x43\x00ab\0\0",
    "end": b"\x7f\x04\x44\x00\0\0",
    "text": b"what a file says",
    "nul": b"a\0b",
    "long": b"a" * 66000,
    "short": b"\1\2\3",
    "empty": b"",
}


def _both(tmp_path: Path, arguments: str) -> list[list[bytes | None]]:
    for name, data in _FILES.items():
        (tmp_path / name).write_bytes(data)
    answers = []
    for peer in (False, True):
        words = arguments.format(d=tmp_path).split()
        with SystemProgram(tmp_path, "x86_64", *words, peer=peer) as program:
            names = ("etc/smbios/smbios-anchor", "etc/smbios/smbios-tables")
            answers.append([firmware_file(program.guest, name) for name in names])
    return answers


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        f"-uuid {_OTHER_UUID} -smbios type=1,uuid={_UUID}",
        "-machine pc-i440fx-6.0",
        "-machine pc-q35-6.1 -m 20487K",
        f"-machine q35 -m 8G -smp 6,sockets=2,cores=3 -uuid {_UUID}",
        "-machine pc,smbios-entry-point-type=64 -smp 8,dies=2,cores=2,threads=2,sockets=1 -cpu Opteron_G5",
        "-smbios type=0 -smbios type=1 -smbios type=2 -smbios type=3 -smbios type=4 -smbios type=11 -smbios type=17",
        "-smbios type=0,vendor=V,version=W,date=1/2/2003,release=3.4,uefi=on",
        f"-smbios type=1,manufacturer=M,product=P,version=V,serial=S,uuid={_UUID},sku=K,family=F -uuid {_OTHER_UUID}",
        "-smbios type=1,serial= -smbios type=1,serial=x -smbios type=1,family=a,,b",
        "-smbios type=2,manufacturer=M,product=P,version=V,serial=S,asset=A,location=L",
        "-smbios type=3,manufacturer=M,version=V,serial=S,asset=A,sku=K",
        "-smbios type=4,sock_pfx=SS,manufacturer=M,version=V,serial=S,asset=A,part=P,processor-id=0x123456789,"
        "max-speed=3000,current-speed=2500 -cpu Haswell -smp 4,threads=2,sockets=2",
        "-smbios type=8,internal_reference=I,external_reference=E,connector_type=300,port_type=5 -smbios type=8",
        "-smbios type=11,value=one,value=,path={d}/text,value=two -smbios type=11,path={d}/empty,value=three",
        "-smbios type=11,path={d}/long -machine q35,smbios-entry-point-type=64",
        "-smbios type=17,loc_pfx=LL,bank=B,manufacturer=M,serial=S,asset=A,part=P,speed=70000 -m 3M",
        "-device virtio-rng-pci,id=d,addr=0x1d -smbios type=41,designation=Q,kind=sata,instance=258,pcidev=d"
        " -smbios type=41 -smbios type=41,kind=sas,designation=R",
        "-smbios file={d}/one -smbios file={d}/other -smbios file={d}/other -smbios type=2,asset=y",
        "-smbios file={d}/end -smbios file={d}/one -smbios file={d}/one",
    ],
)
def test_tables(tmp_path: Path, arguments: str) -> None:
    own, peer = _both(tmp_path, arguments)
    assert own == peer


@pytest.mark.parametrize(
    "arguments",
    [
        "-smbios x=1",
        "-smbios type=x",
        "-smbios type=5",
        "-smbios type=128",
        "-smbios type=0,x=1",
        "-smbios type=0,uefi=x",
        "-smbios type=0,release=1",
        "-smbios type=1,uuid=x",
        "-smbios type=4,max-speed=65536",
        "-smbios type=17,speed=a",
        "-smbios type=11,path={d}/nul",
        "-smbios type=11,path={d}/missing",
        "-smbios type=11,path={d}/long",
        "-smbios type=41,kind=x",
        "-smbios type=41,pcidev=x",
        "-smbios type=41,designation=y,pcidev=b -device isa-debug-exit,id=b",
        "-device pci-bridge,id=b,chassis_nr=1 -device virtio-rng,id=d,bus=b,addr=1 "
        "-smbios type=41,designation=y,pcidev=d",
        "-smbios file={d}/missing",
        "-smbios file={d}/short",
        "-smbios file={d}/one,type=1",
        "-smbios file={d}/one -smbios type=1,serial=x",
        "-smbios type=1,serial=x -smbios file={d}/one",
        "-machine pc,smbios-entry-point-type=65",
    ],
)
def test_refusals(tmp_path: Path, arguments: str) -> None:
    for name, data in _FILES.items():
        (tmp_path / name).write_bytes(data)
    words = ["-nodefaults", "-display", "none", "-S", *arguments.format(d=tmp_path).split()]
    call = "import sys; from qobra.cli.system import main; sys.exit(main('x86_64', sys.argv[1:]))"
    texts = []
    for command in ([sys.executable, "-c", call], ["qemu-system-x86_64"]):
        found = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60)
        assert found.returncode == 1
        texts.append(found.stderr.partition(": ")[2])
    assert texts[0] == texts[1]


@pytest.mark.skipif(shutil.which("dmidecode") is None, reason="dmidecode is not installed")
@pytest.mark.parametrize("version", ["32", "64"])
def test_dmidecode_reads_them(tmp_path: Path, version: str) -> None:
    arguments = ("-machine", f"q35,smbios-entry-point-type={version}", "-m", "4G", "-uuid", _UUID)
    with SystemProgram(tmp_path, "x86_64", *arguments, "-smbios", "type=1,serial=12-34") as program:
        anchor = bytearray(firmware_file(program.guest, "etc/smbios/smbios-anchor") or b"")
        tables = firmware_file(program.guest, "etc/smbios/smbios-tables") or b""
    # What the firmware does: the address, then the checksums. In dmidecode's files the tables follow at 32.
    if version == "32":
        anchor[24:28] = (32).to_bytes(4, "little")
        anchor[21] = -sum(anchor[16:]) & 0xFF
        anchor[4] = -sum(anchor) & 0xFF
    else:
        anchor[16:24] = (32).to_bytes(8, "little")
        anchor[5] = -sum(anchor) & 0xFF
    dump = tmp_path / "dump"
    dump.write_bytes(bytes(anchor).ljust(32, b"\0") + tables)
    command = ["dmidecode", "--from-dump", str(dump)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    for line in (
        "Serial Number: 12-34",
        f"UUID: {_UUID}",
        "Range Size: 2 GB",
        "Size: 4 GB",
        "Socket Designation: CPU 0",
    ):
        assert line in found.stdout
    assert "wrong" not in found.stdout.lower() + found.stderr.lower()

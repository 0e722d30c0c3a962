"""Offsets and bits of the registers (chapter 13)."""

from __future__ import annotations

CTRL, STATUS, EECD, EERD, MDIC, VET = 0x0000, 0x0008, 0x0010, 0x0014, 0x0020, 0x0038
ICR, ICS, IMS, IMC = 0x00C0, 0x00C8, 0x00D0, 0x00D8
RCTL, TCTL, LEDCTL, PBA = 0x0100, 0x0400, 0x0E00, 0x1000
RDBAL, RDBAH, RDLEN, RDH, RDT = 0x2800, 0x2804, 0x2808, 0x2810, 0x2818
TDBAL, TDBAH, TDLEN, TDH, TDT = 0x3800, 0x3804, 0x3808, 0x3810, 0x3818
STATISTICS, STATISTICS_END = 0x4000, 0x4100
MPC, GPRC, BPRC, MPRC, GPTC, GORCL, GOTCL = 0x4010, 0x4074, 0x4078, 0x407C, 0x4080, 0x4088, 0x4090
TORL, TOTL, TPR, TPT, MPTC, BPTC, TSCTC = 0x40C0, 0x40C8, 0x40D0, 0x40D4, 0x40F0, 0x40F4, 0x40F8
MTA, RA, VFTA, MANC = 0x5200, 0x5400, 0x5600, 0x5820
END = 0x5F1C
"""Beyond it there is nothing."""

_ALL = 0xFFFFFFFF
_MASKS = {
    VET: _ALL, 0x00C4: 0xFFFF, RCTL: _ALL, TCTL: _ALL, 0x0458: 0xFFFF, LEDCTL: _ALL, PBA: _ALL,
    RDBAL: _ALL, RDBAH: _ALL, RDLEN: 0xFFF80, RDH: 0xFFFF, RDT: 0xFFFF, 0x2820: 0xFFFF, 0x282C: 0xFFFF,
    TDBAL: _ALL, TDBAH: _ALL, TDLEN: 0xFFF80, TDH: 0xFFFF, TDT: 0xFFFF, 0x3828: _ALL, 0x382C: 0xFFFF,
    0x3410: 0x07FF, 0x3418: 0x07FF, 0x4058: _ALL, 0x5800: _ALL, 0x5808: _ALL, 0x5810: _ALL, 0x5838: _ALL, 0x5B50: _ALL,
    **dict.fromkeys((0x2410, 0x2418, 0x2420, 0x2428, 0x2430, 0x3420, 0x3428, 0x3430), 0x1FFF),
}  # fmt: skip
_TABLES = (
    (MTA, RA + 0x80, _ALL), (VFTA, VFTA + 0x200, _ALL), (0x5840, 0x585C, _ALL), (0x5880, 0x5890, _ALL),
    (0x5A00, 0x5A80, _ALL), (0x5F00, END, 0x07FF),
)  # fmt: skip


def writable(offset: int) -> int:
    """Which bits of a register that is just stored a driver can set; none of those that are not there."""
    mask = _MASKS.get(offset)
    if mask is None:
        mask = next((mask for start, end, mask in _TABLES if start <= offset < end), 0)
    return mask


CTRL_RESET, CTRL_VLAN, CTRL_PHY_RESET = 0x04000000, 0x40000000, 0x80000000
STATUS_LINK = 0x02

TXDW, TXQE, LSC, RXDMT, RXO, RXT = 0x01, 0x02, 0x04, 0x10, 0x40, 0x80
"""Reasons to interrupt."""
MDAC = 0x200

RX_ENABLED, RX_ALL_UNICAST, RX_ALL_MULTICAST, RX_LONG = 0x02, 0x08, 0x10, 0x20
RX_LOOPBACK, RX_THRESHOLD, RX_BROADCAST, RX_VLAN_FILTER = 0xC0, 0x300, 0x8000, 0x40000
RX_STRIP_CRC = 0x04000000
TX_ENABLED = 0x02

INITIAL = {
    CTRL: 0x00140240,
    STATUS: 0x80080783,
    LEDCTL: 0x00000602,
    PBA: 0x00100030,
    MANC: 0x00222300,
    VET: 0x8100,
}
"""After a reset; all others are zero."""

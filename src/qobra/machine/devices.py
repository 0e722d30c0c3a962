"""The device models by type name: one module each in :mod:`qobra.machine.device`."""

from __future__ import annotations

from qobra.machine.qdev import Device
from qobra.object.qom import Object
from qobra.object.tree import ObjectTree
from qobra.registry import Registry

registry: Registry[type[Object]] = Registry("device", ["qobra.machine.device"])

# What users may say instead; the names that boards of this architecture mean.
ALIASES = {
    "ac97": "AC97",
    "ahci": "ich9-ahci",
    "e1000-82540em": "e1000",
    "lsi": "lsi53c895a",
    "virtio-balloon": "virtio-balloon-pci",
    "virtio-blk": "virtio-blk-pci",
    "virtio-gpu": "virtio-gpu-pci",
    "virtio-keyboard": "virtio-keyboard-pci",
    "virtio-mouse": "virtio-mouse-pci",
    "virtio-net": "virtio-net-pci",
    "virtio-rng": "virtio-rng-pci",
    "virtio-scsi": "virtio-scsi-pci",
    "virtio-serial": "virtio-serial-pci",
    "virtio-tablet": "virtio-tablet-pci",
}


def find_device_class(tree: ObjectTree, name: str) -> type[Device] | None:
    """The class of a device type or alias, abstract ones included; None where no device is called so."""
    found = tree.find_type(name)
    if found is None and name in ALIASES:
        found = tree.find_type(ALIASES[name])
    return found if found is not None and issubclass(found, Device) else None

"""SCSI: the bus, disks and CD drives behind any host adapter (SPC-4, SBC-3, MMC-6)."""

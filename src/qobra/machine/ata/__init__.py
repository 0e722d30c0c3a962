"""ATA: disks and packet devices, and the two ways to them: the ports of a PC (with bus-master DMA) and AHCI."""

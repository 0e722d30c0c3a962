"""PCI and PCI Express: configuration space, buses, bridges, interrupts by pin and by message."""

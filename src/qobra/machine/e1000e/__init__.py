"""Intel's 82574L, a gigabit Ethernet card on PCI Express (82574 GbE Controller Family Datasheet, 317694)."""

"""Realtek's RTL8139C+, a fast Ethernet card (RTL8139C+ datasheet, revision 1.6; RTL8139D(L), revision 1.3)."""

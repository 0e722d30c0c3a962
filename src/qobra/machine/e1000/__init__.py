"""Intel's 8254x gigabit Ethernet controllers (Software Developer's Manual 317453, revision 4.0)."""

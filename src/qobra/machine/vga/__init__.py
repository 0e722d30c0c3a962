"""VGA: the registers of 1987, the extension of Bochs for larger modes, and the pictures that follow from both."""

"""What the RISC-V board hands to the software that starts on it."""

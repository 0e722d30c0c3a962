"""The parts of qobra-nbd: serving, listing, going to the background, the kernel's client."""

"""Displays over VNC: the RFB protocol (RFC 6143), with the extensions that QEMU's clients use."""

"""Protocols between a character device and its socket: TLS, telnet, WebSocket."""

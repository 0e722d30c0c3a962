"""Virtio 1.2: queues (split and packed), what devices have in common, and the transports."""

"""USB: buses with ports, devices with endpoints, and the descriptors by which a host knows them (USB 2.0)."""

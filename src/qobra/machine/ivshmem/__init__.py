"""Memory that several machines share, with doorbells between them (QEMU's published ``docs/specs/ivshmem-spec``)."""

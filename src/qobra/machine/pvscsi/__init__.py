"""VMware's paravirtual SCSI adapter: rings in guest memory (the interface of FreeBSD's ``sys/dev/vmware/pvscsi``)."""

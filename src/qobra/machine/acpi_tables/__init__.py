"""The ACPI tables of PCs: what is in them, and how they get into the guest's memory."""

"""Moving a machine: its state to a stream and back, migration, and snapshots of machines."""

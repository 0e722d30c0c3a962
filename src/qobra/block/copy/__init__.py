"""The copy engine: how data gets from one node to another, for jobs and tools alike."""

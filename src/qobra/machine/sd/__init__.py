"""SD cards and the controllers that they plug into."""

"""Displays: what graphics devices draw on, and what shows or saves it."""

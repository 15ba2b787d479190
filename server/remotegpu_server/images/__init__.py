"""The allow-list."""

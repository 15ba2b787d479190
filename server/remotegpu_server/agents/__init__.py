"""The agent protocol."""

"""The host agent: makes one machine match its desired set, and measures it."""

__version__ = "0.1.0"

"""The client, written once. ``remotegpu._sync`` is generated from this package."""

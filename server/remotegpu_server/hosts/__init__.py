"""Hosts and their lifecycle."""

"""Homes: what they take of the disk, and their removal."""

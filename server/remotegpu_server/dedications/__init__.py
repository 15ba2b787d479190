"""Whole hosts lent to a tenant."""

"""Workspaces: where environments and tasks live, and who may use them."""

"""GPUs promised for a period."""

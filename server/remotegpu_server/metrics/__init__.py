"""What was measured: history, its roll-ups, and what Prometheus scrapes."""

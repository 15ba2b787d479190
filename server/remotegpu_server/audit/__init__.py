"""Who did what: the append-only trail."""

"""Places in the queue that are kept for hub servers."""

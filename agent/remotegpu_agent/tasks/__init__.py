"""Tasks on this host: claims them, runs each attempt to its end, and proves that nothing of it is left."""

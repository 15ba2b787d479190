"""Tasks: what people submit, and what becomes of it."""

"""Statistics of what was used."""

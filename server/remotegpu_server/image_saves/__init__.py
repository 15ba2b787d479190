"""Running environments saved as images."""

"""What tasks leave behind: their output and their artifacts."""

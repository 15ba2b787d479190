"""Where programs are told what happens."""

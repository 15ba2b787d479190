"""Functions and cells that run elsewhere: what travels, the program on the other side, what comes back."""

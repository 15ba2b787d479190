"""SSH keys: who may enter which environment."""

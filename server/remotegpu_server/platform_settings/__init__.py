"""What admins can change while the server runs."""

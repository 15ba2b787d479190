"""Interactive containers, from request to proof of absence."""

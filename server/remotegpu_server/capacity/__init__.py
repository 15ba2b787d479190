"""What is free: the inventory that placement decides on."""

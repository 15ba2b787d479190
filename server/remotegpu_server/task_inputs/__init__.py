"""Files that people send before the tasks that read them."""

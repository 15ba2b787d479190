"""Who is next, when that will be, and what is promised for later."""

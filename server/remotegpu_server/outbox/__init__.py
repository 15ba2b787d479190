"""What is still to be delivered elsewhere: one table with leases, written with what causes it."""

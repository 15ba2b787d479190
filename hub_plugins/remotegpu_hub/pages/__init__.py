"""The GPU pages in the hub: a service of its own, which the hub starts and signs people in to."""

# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""The blocking client."""

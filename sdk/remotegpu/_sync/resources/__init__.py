# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""One module per noun of the API; each is imported when a client first uses it."""

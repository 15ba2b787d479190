"""One module per noun of the API; each is imported when a client first uses it."""

"""Rules over what is measured and known, and the alerts that they raise."""

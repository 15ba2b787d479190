"""The authorization matrix: every route of the app by every kind of caller."""

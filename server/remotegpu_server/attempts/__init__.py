"""Attempts: the protocol between the server and the agent that runs a task."""

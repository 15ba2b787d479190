"""Wire types: what travels between server, agents and clients, written once.

Import the module of a noun (``from remotegpu.types import environments``); nothing is imported here,
because pydantic classes cost import time and most programs need two or three of them.
"""

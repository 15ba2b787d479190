"""The whole of RemoteGPU on one machine: what `make up`, `make down` and `make status` run.

The parts are subprocesses, started by their console scripts and never imported.
"""

"""RemoteGPU in JupyterHub: sign-in, spawner and pages, set up by :func:`configure`."""

from remotegpu_hub.configuration import configure

__all__ = ["configure"]

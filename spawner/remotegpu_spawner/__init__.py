"""JupyterHub spawner for RemoteGPU: a hub server is an environment on a GPU host."""

from remotegpu_spawner.spawner import RemoteGPUSpawner

__all__ = ["RemoteGPUSpawner"]

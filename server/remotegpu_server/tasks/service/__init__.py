"""The verbs of tasks, by file: ``submit``, ``read``, ``stop``, ``turns``."""

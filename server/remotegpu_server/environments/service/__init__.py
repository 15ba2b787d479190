"""The verbs of environments, by file: ``create``, ``stop``, ``placing``, ``observe``, ``read``."""

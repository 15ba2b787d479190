"""The verbs of environments, by file: ``create``, ``stop``, ``starting``, ``observe``, ``read``."""

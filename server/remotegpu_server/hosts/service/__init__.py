"""What is done with hosts, by file: ``entries``, ``operate``, ``health``."""

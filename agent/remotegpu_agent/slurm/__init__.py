"""A partition of Slurm as a pool of hosts: docs/slurm.md."""

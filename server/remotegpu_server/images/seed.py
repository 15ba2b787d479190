"""The ten images that are in every catalogue from the start, for an admin to activate."""

from __future__ import annotations

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.db import tables

_SEEDS = (
    ("cuda-11-8", "CUDA 11.8", "nvidia/cuda:11.8.0-cudnn8-devel-ubuntu22.04", "cuda", "CUDA", "11.8", "11.8"),
    ("cuda-12-1", "CUDA 12.1", "nvidia/cuda:12.1.1-cudnn8-devel-ubuntu22.04", "cuda", "CUDA", "12.1", "12.1"),
    ("pytorch-2-1", "PyTorch 2.1", "pytorch/pytorch:2.1.2-cuda12.1-cudnn8-runtime", "deep-learning",
     "PyTorch", "2.1", "12.1"),
    ("pytorch-2-2", "PyTorch 2.2", "pytorch/pytorch:2.2.2-cuda12.1-cudnn8-runtime", "deep-learning",
     "PyTorch", "2.2", "12.1"),
    ("tensorflow-2-14", "TensorFlow 2.14", "tensorflow/tensorflow:2.14.0-gpu-jupyter", "deep-learning",
     "TensorFlow", "2.14", "11.8"),
    ("tensorflow-2-15", "TensorFlow 2.15", "tensorflow/tensorflow:2.15.0-gpu-jupyter", "deep-learning",
     "TensorFlow", "2.15", "12.2"),
    ("ngc-pytorch-24-01", "NGC PyTorch 24.01", "ngc/nvidia/pytorch:24.01-py3", "deep-learning",
     "PyTorch", "2.2", "12.3"),
    ("ngc-tensorflow-24-01", "NGC TensorFlow 24.01", "ngc/nvidia/tensorflow:24.01-tf2-py3",
     "deep-learning", "TensorFlow", "2.14", "12.3"),
    ("scipy-notebook", "Jupyter SciPy notebook", "jupyter/scipy-notebook:python-3.11",
     "data-science", None, None, None),
    ("huggingface-transformers", "Hugging Face Transformers", "huggingface/transformers-pytorch-gpu:latest",
     "deep-learning", "Transformers", None, None),
)  # fmt: skip
"""Name, display name, reference, category, framework and its version, CUDA version.

References name no registry: a site sets the one that it pulls from before it activates an entry.
"""


async def seed(db: AsyncSession) -> None:
    """Insert what is missing. What an admin made of an entry stays; one of that name is left alone."""
    row = tables.Image
    rows = [
        {
            "id": tables.new_id("img"),
            "name": name,
            "display_name": display_name,
            "reference": reference,
            "description": "Not activated: its notebook server has to be there (docs/images.md).",
            "category": category,
            "framework": framework,
            "framework_version": version,
            "cuda_version": cuda,
            "runtime": "docker",
            "status": "inactive",
        }
        for name, display_name, reference, category, framework, version, cuda in _SEEDS
    ]
    await db.execute(insert(row).values(rows).on_conflict_do_nothing(index_elements=[row.name]))

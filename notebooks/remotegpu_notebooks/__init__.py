"""GPUs and quota inside a notebook.

    %load_ext remotegpu_notebooks
    %gpu
    %%remotegpu --gpus 1

    from remotegpu_notebooks import dashboard
    dashboard()

Importing this package loads neither widgets nor the client: both come with their first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from remotegpu_notebooks.widgets import Dashboard, dashboard

__all__ = ["Dashboard", "dashboard"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from remotegpu_notebooks import widgets

    return getattr(widgets, name)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """What ``%load_ext remotegpu_notebooks`` calls: brings ``%gpu`` and ``%%remotegpu``."""
    from remotegpu_notebooks import elsewhere, magics

    magics.register(shell)
    elsewhere.register(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """What ``%unload_ext remotegpu_notebooks`` calls."""
    for kind, name in (("line", "gpu"), ("line", "remotegpu"), ("cell", "remotegpu")):
        shell.magics_manager.magics[kind].pop(name, None)

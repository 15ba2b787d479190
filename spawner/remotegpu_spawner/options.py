"""What a person or a program may ask of a spawn: from the form, from REST, from the last time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

GIB = 2**30

FIELDS = (
    "image",
    "gpus",
    "gpu_models",
    "gpu_memory_gib",
    "mig_profile",
    "cpus",
    "memory_gib",
    "workspace",
)
PART = "gpu_part"
"""The form's choice of what a GPU is asked for as; its other fields stay filled in beside it."""
_PARTS: dict[str, dict[str, object]] = {
    "whole": {"gpu_memory_gib": 0, "mig_profile": ""},
    "share": {"gpus": 1, "mig_profile": ""},
    "mig": {"gpu_memory_gib": 0, "gpu_models": []},
}
"""What each part makes of the fields that belong to another one."""


class InvalidOption(ValueError):
    """An option that cannot be understood; the message is for the person who sent it."""


@dataclass(frozen=True)
class Options:
    """One request with the site's defaults filled in. The server judges it; here its form is checked."""

    image: str = ""
    """Id, name or reference; empty: the first image of the allow-list."""
    gpus: int = 1
    gpu_models: tuple[str, ...] = ()
    """Any of these; empty: any model."""
    gpu_memory_gib: float = 0.0
    """A soft share of one GPU's memory; 0: whole GPUs."""
    mig_profile: str = ""
    """MIG instances of this profile; empty: GPUs."""
    cpus: float = 1.0
    memory_gib: float = 2.0
    workspace: str = ""
    """Id of the workspace of a new environment; empty: the personal one."""

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * GIB)

    def spec(self) -> dict[str, Any]:
        """The fields of a new environment."""
        return {
            "image": self.image,
            "gpus": self.gpus,
            "gpu_models": self.gpu_models,
            "gpu_memory_bytes": int(self.gpu_memory_gib * GIB) or None,
            "mig_profile": self.mig_profile or None,
            "cpus": self.cpus,
            "memory_bytes": self.memory_bytes,
            "workspace": self.workspace or None,
        }

    def start(self) -> dict[str, Any]:
        """The fields of another start: what is not asked for is said, else the last start's would stay."""
        spec = self.spec() | {
            "gpu_memory_bytes": int(self.gpu_memory_gib * GIB),
            "mig_profile": self.mig_profile,
        }
        return {name: value for name, value in spec.items() if name != "workspace"}

    def with_image(self, name: str) -> Options:
        """The same request with the image that was meant."""
        return replace(self, image=name)

    @property
    def profile(self) -> str:
        """For the hub's admin page: ``1x A100-80GB / base``."""
        models = "|".join(self.gpu_models) or "GPU"
        gpus = f"{self.gpus}x {self.mig_profile or models}" if self.gpus else "CPU only"
        if self.gpu_memory_gib:
            gpus = f"{self.gpu_memory_gib:g} GiB of {models}"
        return f"{gpus} / {self.image}" if self.image else gpus


def from_form(form: Mapping[str, list[str]]) -> dict[str, object]:
    """The form's lists of strings as options. Raises :class:`InvalidOption`."""
    sent: dict[str, object] = {
        name: values[0].strip() for name, values in form.items() if name in FIELDS and values
    }
    if "gpu_models" in sent:
        sent["gpu_models"] = [value.strip() for value in form["gpu_models"] if value.strip()]
    if part := form.get(PART):
        if part[0] not in _PARTS:
            raise InvalidOption(f"{PART} must be one of {', '.join(_PARTS)}.")
        sent |= _PARTS[part[0]]
    return {name: value for name, value in asdict(parse(sent, Options())).items() if name in sent}


def parse(options: Mapping[str, object] | None, defaults: Options) -> Options:
    """Options of any origin over the defaults; unknown names and wrong types raise :class:`InvalidOption`."""
    if not isinstance(options or {}, Mapping):
        raise InvalidOption("The options must be an object with one entry for each option.")
    sent = {name: value for name, value in (options or {}).items() if name != "profile"}
    if "gpu_model" in sent:  # remembered by the hub from a start before version 0.2
        model = _text(sent, "gpu_model", "")
        sent = {name: value for name, value in sent.items() if name != "gpu_model"}
        sent.setdefault("gpu_models", [model] if model else [])
    unknown = sorted(set(sent) - set(FIELDS))
    if unknown:
        raise InvalidOption(f"Unknown option {', '.join(unknown)[:200]}. Known: {', '.join(FIELDS)}.")
    return Options(
        image=_text(sent, "image", defaults.image),
        gpus=int(_number(sent, "gpus", defaults.gpus, whole=True)),
        gpu_models=_models(sent, defaults.gpu_models),
        gpu_memory_gib=_number(sent, "gpu_memory_gib", defaults.gpu_memory_gib),
        mig_profile=_text(sent, "mig_profile", defaults.mig_profile),
        cpus=_number(sent, "cpus", defaults.cpus),
        memory_gib=_number(sent, "memory_gib", defaults.memory_gib),
        workspace=_text(sent, "workspace", defaults.workspace),
    )


def _models(sent: Mapping[str, object], default: tuple[str, ...]) -> tuple[str, ...]:
    value = sent.get("gpu_models", default)
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(one, str) and len(one) <= 64 for one in value
    ):
        raise InvalidOption("gpu_models must be a list of model names of at most 64 characters.")
    return tuple(value)


def _text(sent: Mapping[str, object], name: str, default: str) -> str:
    value = sent.get(name, default)
    if not isinstance(value, str) or len(value) > 255:
        raise InvalidOption(f"{name} must be a text of at most 255 characters.")
    return value


def _number(sent: Mapping[str, object], name: str, default: float, *, whole: bool = False) -> float:
    value = sent.get(name, default)
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = float(value)
    except ValueError:
        raise InvalidOption(f"{name} must be a number, not {value!r:.40}.") from None
    if not math.isfinite(number) or number < 0 or (whole and number != int(number)):
        raise InvalidOption(f"{name} must be a {'whole ' if whole else ''}number of at least 0.")
    return number

"""The base of every wire type, the page of a list, and the body of an error."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Self, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError, core_schema

if TYPE_CHECKING:
    from pandas import DataFrame

T = TypeVar("T")

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""Names are DNS labels, because they become container names, host names and path segments."""

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=63)]
"""A short name, unique in its scope: lower case letters, digits and hyphens."""

Username = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._@-]{0,62}$")]
"""A login name. Lower case only, so that JupyterHub's normalisation changes nothing."""

Text = Annotated[str, StringConstraints(max_length=1024)]
"""Free text for people. Untrusted wherever it is shown."""

CeilingS = Annotated[float, Field(ge=0, le=366 * 86400)]
"""A longest lifetime in seconds, in an update; 0: none again."""
Bytes = Annotated[int, Field(ge=0, le=2**62)]
"""A number of bytes."""

UtcTime = AwareDatetime
"""RFC 3339 with an offset; the server always answers in UTC."""

Labels = dict[
    Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9./-]{0,61}[a-z0-9])?$")],
    Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f]*$")],
]


class Wire(BaseModel):
    """Base of all wire types: frozen, unknown fields refused.

    The server validates what it receives strictly. A client reads answers with ``extra="ignore"``, so an
    old client survives the fields of a newer server.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    def __repr_args__(self) -> Iterable[tuple[str | None, object]]:
        """What stands in a table of this type, on one line; never a secret, which a notebook would keep."""
        from remotegpu import _tables

        return _tables.facts(self)

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        from remotegpu import _tables

        return _tables.card(self)


class Table(Wire):
    """An answer that is a table in the first place."""

    ROWS: ClassVar[str]
    """The field that holds its rows."""

    def to_pandas(self) -> DataFrame:
        """Its rows as a DataFrame: flat columns with units in their names, times in UTC.

        :raises remotegpu.errors.MissingExtra: pandas is not installed.
        """
        from remotegpu import _frames

        return _frames.frame(_frames.row_type(type(self), self.ROWS), getattr(self, self.ROWS))


class WireEnum(StrEnum):
    """An enum that a client can still read when a newer server sends a value it does not know.

    Only a client that reads an answer says so, by a validation context; as input such a value is refused.
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        return cls.__members__.get("UNKNOWN")

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[Any], handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.with_info_before_validator_function(cls._known, handler(source))

    @classmethod
    def _known(cls, value: Any, info: ValidationInfo) -> Any:
        if not info.context and value not in list(cls):
            listed = ", ".join(repr(str(member)) for member in cls if member.name != "UNKNOWN")
            raise PydanticCustomError("enum", "Input should be one of {listed}", {"listed": listed})
        return value


class Page(Wire, Generic[T]):
    """One page of a list, in the order the endpoint documents."""

    items: list[T]
    next_cursor: str | None
    """Pass it as ``cursor`` to get the next page; ``null`` on the last one."""


class BatchResult(Wire):
    """What became of each item of a batch; every item stands by itself."""

    succeeded: list[str]
    failed: dict[str, str]
    """Why, by id or name as it was sent."""


class ErrorBody(Wire):
    """The one error shape of the API."""

    error: str
    """A stable code from :class:`remotegpu.errors.ErrorCode`."""
    detail: str
    """What is wrong, in plain words."""
    hint: str | None
    """What to do about it, or ``null``."""
    request_id: str
    """Also in the header ``X-Request-Id`` and in the server's log."""
    data: dict[str, object] = {}
    """Facts a program can act on, by error code (a quota's limit and use, the next free time)."""


__all__ = [
    "NAME_PATTERN",
    "BatchResult",
    "Bytes",
    "ErrorBody",
    "Labels",
    "Name",
    "Page",
    "Table",
    "Text",
    "Username",
    "UtcTime",
    "Wire",
    "WireEnum",
]

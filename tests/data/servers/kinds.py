"""A server with a component for every kind of type hint."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import pydantic

from stepflow.component import Context, component, serve


@dataclass
class Point:
    x: int
    y: int = 0
    tags: list[str] = field(default_factory=list)


class Order(TypedDict):
    item: str
    count: NotRequired[int]


class Frame(msgspec.Struct):
    text: str
    width: Annotated[int, msgspec.Meta(ge=1, description="In characters.")] = 80


class Money(pydantic.BaseModel):
    amount: float
    currency: Literal["EUR", "USD"] = "EUR"


class Basket(pydantic.BaseModel):
    owner: str = pydantic.Field(alias="ownedBy")
    prices: list[Money]


@dataclass
class Tree:
    value: int
    children: "list[Tree]" = field(default_factory=list)


@component
def dataclass_kind(point: Point) -> Point:
    """Move a point to the right."""
    return Point(point.x + 1, point.y, point.tags)


@component
def typed_dict_kind(order: Order) -> Order:
    return {"item": order["item"], "count": order.get("count", 1)}


@component
def struct_kind(frame: Frame) -> Frame:
    return frame


@component
async def pydantic_kind(basket: Basket) -> Basket:
    return basket


@component
def plain_kind(a: int, b: float = 0.5, when: datetime | None = None, names: tuple[str, ...] = ("x",)) -> dict[str, Any]:
    return {"a": a, "b": b, "year": when.year if when else None, "names": names}


@component
def mixed_kind(money: Money, times: int = 2) -> list[Money]:
    return [money] * times


@component
def whole_kind(input: list[int]) -> int:  # the name that takes the whole input
    return sum(input)


@component
def free_kind(input):  # type: ignore[no-untyped-def]  # a function without hints
    return input


@component
def nothing_kind() -> None:
    return None


@component
def recursive_kind(tree: Tree) -> int:
    return tree.value + sum(map(recursive_kind, tree.children))


@component(name="text/upper", description="Given by hand.")
def renamed(ctx: Context, text: str) -> str:
    """Not shown."""
    return text.upper()


@component("core/{*rest}")
def core(rest: str, input: Any) -> list[Any]:  # the name that takes the whole input
    return [rest, input]


@component("user/{name}/hello")
async def hello(name: str, greeting: str = "Hello") -> str:
    return f"{greeting}, {name}!"


if __name__ == "__main__":
    serve()

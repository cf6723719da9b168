"""A kind of kernels that packs hold tilings of: how it is filed, looked up and chosen.

A problem is filed under a key, and under it by two of its sizes, the outer and the inner one, in
classes: each goes up to a size and has one choice; the class None takes whatever is larger.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from autotune.gpu import Gpu
from constrint import Model


class Solved(Protocol):
    """A dataclass of integers and words."""

    def as_config(self) -> dict[str, int]:
        """The tiling as a solution of its model."""


ProblemT = TypeVar("ProblemT")
TilingT = TypeVar("TilingT", bound=Solved)
ChosenT = TypeVar("ChosenT")

Classes = tuple[tuple[int | None, ChosenT], ...]
# By the outer size, then by the inner one.
Choice = Classes[Classes[TilingT]]


@dataclass(frozen=True)
class Section(Generic[TilingT]):
    """What a pack holds of one kind, by `key_of` a problem.

    chosen_by: what chose, in words. rejected: kernels, as `kernel_of` a tiling, that the compiler's
    report ruled out.
    """

    chosen_by: str
    choices: Mapping[str, Choice[TilingT]]
    rejected: Mapping[str, tuple[TilingT, ...]] = field(default_factory=dict)


class Kind(ABC, Generic[ProblemT, TilingT]):
    """One kind of kernels."""

    name: str  # in the file

    @abstractmethod
    def key_of(self, problem: ProblemT) -> str:
        """What a problem is filed under, but for its two sizes."""

    @abstractmethod
    def sizes_of(self, problem: ProblemT) -> tuple[int, int]:
        """Its outer and its inner size."""

    @abstractmethod
    def tiling_of(self, config: Mapping[str, int]) -> TilingT:
        """The tiling with these fields. Raises TypeError and ValueError for those of none."""

    @abstractmethod
    def model(self, tiling: TilingT, problem: ProblemT, gpu: Gpu) -> Model:
        """The model whose solution such a tiling is."""

    @abstractmethod
    def best(self, problem: ProblemT, gpu: Gpu) -> TilingT:
        """What the model chooses for this very problem."""

    @abstractmethod
    def choice(
        self, problem: ProblemT, gpu: Gpu, rejected: Collection[TilingT] = ()
    ) -> Choice[TilingT]:
        """What the model chooses in every class; kernels that were rejected do not take part."""

    @abstractmethod
    def kernel_of(self, tiling: TilingT) -> TilingT | None:
        """One that stands for all tilings of a compiled kernel; None: it needs no judging."""

    def fits(self, tiling: TilingT, problem: ProblemT, gpu: Gpu) -> bool:
        """Whether the model admits it; nothing is solved."""
        model, config = self.model(tiling, problem, gpu), tiling.as_config()
        inside = all(
            type(config[name]) is int and config[name] in variable.domain
            for name, variable in model.variables.items()
        )
        return inside and not model.check(config)

    def usable(self) -> bool:
        """Whether packs are for the tools that are installed."""
        return True

    def choices(
        self,
        problems: Iterable[ProblemT],
        gpu: Gpu,
        rejected: Mapping[str, Collection[TilingT]] | None = None,
    ) -> dict[str, Choice[TilingT]]:
        """The choices for a GPU that need not be there."""
        wrong = rejected or {}
        keys = {self.key_of(problem): problem for problem in problems}
        return {key: self.choice(p, gpu, wrong.get(key, ())) for key, p in keys.items()}


def classes(
    sizes: Sequence[int], chosen: Callable[[int], ChosenT], *, closed: bool = False
) -> Classes[ChosenT]:
    """What is chosen at ascending sizes; those that agree with the next one are one class.

    closed: the last class ends with the last size; else it takes whatever is larger too.
    """
    found: list[tuple[int | None, ChosenT]] = []
    for size in sizes:
        new = chosen(size)
        if found and found[-1][1] == new:
            found.pop()
        found.append((size, new))
    if not closed:
        found[-1] = None, found[-1][1]
    return tuple(found)


def of_class(among: Classes[ChosenT], size: int) -> ChosenT | None:
    """The choice of the smallest class that takes the size."""
    return next((chosen for most, chosen in among if most is None or size <= most), None)


def powers(first: int, last: int) -> tuple[int, ...]:
    """Powers of two from one to another."""
    return tuple(1 << k for k in range(first.bit_length() - 1, last.bit_length()))

"""NormSet: which axes, or which parts of an axis, a normalization set spans. Names and integers only, no arrays."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import prod
from typing import NoReturn, SupportsIndex, TypeAlias

from ._errors import axis_error
from ._layout import Part, Split
from ._pattern import Axis, parse

Sets: TypeAlias = "NormSet | str | int | tuple[int, ...]"


class NormSet:
    """The normalization sets of an array: what shares one mean and one variance.

    Parameters
    ----------
    spec : str, int or tuple of int
        A pattern, or the axes a set spans (as ``axis`` of `numpy.mean`). In a pattern, names stand for axes; ``[...]``
        brackets mark what is reduced; ``(g [c])`` splits an axis into parts, outermost first; ``...``, alone or after a
        name (``s...``), stands for any number of axes; a number is an axis of that size.
    **sizes : int
        Sizes of named axes or parts. All but one part of a split axis need one; any other is checked.

    Raises
    ------
    ValueError
        The pattern is malformed, or does not fit a size that was given.
    TypeError
        `spec` is neither a string nor made of integers, or sizes come beside axes.

    Notes
    -----
    A NormSet holds no array and no shape; it is hashable and parsed once. The notation is that of einx. PyTorch has one
    function per set instead, Flax ``reduction_axes``, Keras ``axis``.

    Examples
    --------
    >>> import normkit as nk
    >>> group = nk.NormSet("n (g [c]) [...]", g=2)
    >>> group
    NormSet('n (g [c]) [...]', g=2)
    >>> group.moments_shape((8, 6, 4, 4))
    (8, 2, 1, 1)
    >>> nk.NormSet((2, 3)).moments_shape((8, 6, 4, 4))
    (8, 6, 1, 1)
    """

    __slots__ = ("_hash", "_sizes", "_spec")
    _spec: str | tuple[int, ...]
    _sizes: tuple[tuple[str, int], ...]

    def __init__(self, spec: str | int | Iterable[int], **sizes: int) -> None:
        if isinstance(spec, str):
            found: str | tuple[int, ...] = spec
            names = {atom.name for axis in parse(spec) for atom in axis if not atom.many}
            for name in sizes:
                if name not in names:
                    raise ValueError(f"size {name}={sizes[name]} names no axis of pattern {spec!r}, which has {_list(names)}")
        else:
            found = _axes(spec)
            if sizes:
                unknown = ", ".join(map(repr, sizes))
                raise TypeError(f"unexpected keyword argument {unknown}: sizes of axes go with a pattern, sets is {spec!r}")
        checked = tuple((name, _size(name, size)) for name, size in sorted(sizes.items()))
        object.__setattr__(self, "_spec", found)
        object.__setattr__(self, "_sizes", checked)
        object.__setattr__(self, "_hash", hash((found, checked)))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"NormSet is immutable; cannot set {name!r}")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, self.described()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NormSet) and (self._spec, self._sizes) == (other._spec, other._sizes)

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined, no-any-return]

    def __repr__(self) -> str:
        return f"NormSet({', '.join([repr(self._spec), *(f'{name}={size}' for name, size in self._sizes)])})"

    def described(self) -> tuple[str | tuple[int, ...], dict[str, int]]:
        """The pattern or axes, and the sizes, that it was made from."""
        return self._spec, dict(self._sizes)

    @property
    def reduces(self) -> bool:
        """Whether the description marks anything as reduced."""
        if isinstance(self._spec, str):
            return any(atom.reduced for axis in parse(self._spec) for atom in axis)
        return bool(self._spec)

    def split(self, shape: tuple[int, ...]) -> Split:
        """The parts, (size, reduced?), of every axis of an array of this shape."""
        return _split(self._spec, self._sizes, shape)

    def moments_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the moments: every axis of the array, its reduced parts left out."""
        return moments_shape(self.split(shape))


def _rebuild(spec: str | tuple[int, ...], sizes: dict[str, int]) -> NormSet:
    return NormSet(spec, **sizes)


def as_norm_set(sets: Sets, sizes: Mapping[str, int]) -> NormSet:
    """What a caller passed as `sets`, as a NormSet."""
    if isinstance(sets, NormSet):
        if sizes:
            raise TypeError(f"unexpected keyword argument {', '.join(map(repr, sizes))}: {sets!r} has its sizes already")
        return sets
    return _cached(sets, tuple(sizes.items())) if _hashable(sets) else NormSet(sets, **sizes)


def _hashable(sets: object) -> bool:
    return isinstance(sets, str) or type(sets) is int or (type(sets) is tuple and all(type(a) is int for a in sets))


@lru_cache(maxsize=1024)
def _cached(sets: str | int | tuple[int, ...], sizes: tuple[tuple[str, int], ...]) -> NormSet:
    return NormSet(sets, **dict(sizes))


@lru_cache(maxsize=4096)
def moments_shape(split: Split) -> tuple[int, ...]:
    """Shape of the moments of these sets."""
    return tuple(prod(size for size, reduced in parts if not reduced) for parts in split)


def by_axes(shape: tuple[int, ...], axes: Iterable[int]) -> Split:
    """The sets that span these (non-negative) axes."""
    reduced = frozenset(axes)
    return tuple(((size, axis in reduced),) for axis, size in enumerate(shape))


def by_groups(shape: tuple[int, ...], channel: int, groups: int, kept: frozenset[int]) -> Split:
    """The sets of group normalization: a group of neighbouring channels and every axis that is not kept."""
    channels = shape[channel]
    if groups < 1 or channels % groups:
        raise ValueError(f"num_groups={groups} does not divide the {channels} channels of axis {channel} of shape {shape}")
    whole = by_axes(shape, (axis for axis in range(len(shape)) if axis not in kept))
    return (*whole[:channel], ((groups, False), (channels // groups, True)), *whole[channel + 1 :])


def normalize_axes(axes: Iterable[int], ndim: int, argument: str = "axis") -> tuple[int, ...]:
    """Axes as non-negative integers in rising order."""
    found = []
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise axis_error(axis, ndim, argument)
        found.append(axis % ndim)
    if len(set(found)) != len(found):
        raise ValueError(f"{argument}={tuple(axes)} names an axis twice (the array has {ndim} axes)")
    return tuple(sorted(found))


def _axes(spec: object, argument: str = "sets") -> tuple[int, ...]:
    """An int or an iterable of ints as a tuple."""
    if isinstance(spec, bool):
        raise TypeError(f"{argument} must be axes (int or tuple of int), a pattern (str) or a NormSet, not {spec!r}")
    try:
        return (operator.index(spec),)  # type: ignore[arg-type]
    except TypeError:
        pass
    try:
        members: tuple[object, ...] = tuple(spec)  # type: ignore[arg-type]
        if any(isinstance(axis, bool) for axis in members):
            raise TypeError("bool is no axis")
        return tuple(operator.index(axis) for axis in members)  # type: ignore[arg-type]
    except TypeError:
        message = f"{argument} must be axes (int or tuple of int), a pattern (str) or a NormSet, not {spec!r}"
        raise TypeError(message) from None


def axes_tuple(axis: SupportsIndex | Iterable[int], argument: str = "axis") -> tuple[int, ...]:
    """`axis` of a named function as a tuple of ints."""
    return _axes(axis, argument)


def _size(name: str, size: object) -> int:
    try:
        number = operator.index(size)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"size {name}={size!r} must be an integer") from None
    if number < 1:
        raise ValueError(f"size {name}={number} must be at least 1")
    return number


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(name for name in names if name)) or "no names"


@lru_cache(maxsize=4096)
def _split(spec: str | tuple[int, ...], sizes: tuple[tuple[str, int], ...], shape: tuple[int, ...]) -> Split:
    if not isinstance(spec, str):
        return by_axes(shape, normalize_axes(spec, len(shape)))
    axes, known = parse(spec), dict(sizes)
    single = sum(not axis[0].many for axis in axes)
    many = len(axes) > single
    if len(shape) < single or (len(shape) > single and not many):
        wanted = f"at least {single}" if many else str(single)
        raise ValueError(f"pattern {spec!r} has {wanted} axes, the array has {len(shape)}: shape {shape}")
    result: list[tuple[Part, ...]] = []
    for axis in axes:
        if axis[0].many:
            for _ in range(len(shape) - single):
                result.append(((shape[len(result)], axis[0].reduced),))
        else:
            result.append(_axis_parts(spec, axis, known, len(result), shape))
    return tuple(result)


def _axis_parts(pattern: str, axis: Axis, known: Mapping[str, int], index: int, shape: tuple[int, ...]) -> tuple[Part, ...]:
    """(size, reduced?) of the parts of one axis."""
    length = shape[index]
    sizes = [atom.size if atom.size is not None else known.get(atom.name) for atom in axis]
    unknown = [k for k, size in enumerate(sizes) if size is None]
    place = f"axis {index} of shape {shape} in pattern {pattern!r}"
    if len(unknown) > 1:
        names = [axis[k].name for k in unknown]
        raise ValueError(f"unknown sizes {_list(names)} of {place}: all but one must be given, as in {names[0]}=2")
    given = prod(size for size in sizes if size is not None)
    if unknown:
        if given == 0 or length % given:
            stated = ", ".join(f"{a.name}={s}" if a.name else str(s) for a, s in zip(axis, sizes, strict=True) if s is not None)
            raise ValueError(f"length {length} is not divisible by {given} ({stated}): {place}")
        sizes[unknown[0]] = length // given
    elif given != length:
        stated = " * ".join(f"{a.name}={s}" if a.name else str(s) for a, s in zip(axis, sizes, strict=True))
        raise ValueError(f"size {stated} does not match length {length}: {place}")
    return tuple((size, atom.reduced) for size, atom in zip(sizes, axis, strict=True) if size is not None)

"""A jaxpr of a tile as a C function, which passes once over the tile.

An array of the jaxpr has one element for each element of the tile, or one for each block of the
tile, as the scales of a codec have. The function gets the number of elements of the tile when it is
called, so one function serves arrays of every shape.

Without blocks, all equations become one loop. With blocks, the function goes from block to block,
and computes what a block has once, such as its scale, before the loop over the block's elements. A
maximum over the block begins a new level: what depends on it is computed in another loop over the
same block, whose values are still in the fastest memory of the core. A block that does not fill
vectors is copied into memory that does, so that no loop has a rest of single elements.

Scalars of the jaxpr are sums over the tile, and what is computed of them and of numbers. A loop
adds to its sums in any order, so that it can use vectors. One more array takes the scalars of all
tiles.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from adamx.numerics.jaxprs import called

__all__ = ["TYPES", "Function", "Untranslatable", "function"]


HEAD = """\
static void on_tile(int n, int64_t start, const void* const* in, void* const* out,
                    const void* const* number) {"""


class Untranslatable(Exception):
    """The jaxpr can't be written as loops over a tile."""


TYPES = {
    "bool": "uint8_t",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int16": "int16_t",
    "uint16": "uint16_t",
    "int32": "int32_t",
    "uint32": "uint32_t",
    "float32": "float",
    "float64": "double",
    "bfloat16": "float",  # in memory, the upper half of a float32
}
STORED = {**TYPES, "bfloat16": "uint16_t"}


Of = Literal["number", "tile", "block", "element"]
"""What a value exists once for: a whole parameter, a tile, a block, or an element."""


VECTOR = 16
"""Elements of the longest vectors, of 512 bits."""


class Function(NamedTuple):
    """A function in C.

    Attributes:
        text: its source.
        arrays: the places of the arrays that it gets; it does not get those that it does not read.
        numbers: the places of the numbers that it gets.
        scalars: for each scalar among the results, whether it is a sum over the tile; else it is
            the same for all tiles.
        dtype: the dtype of the array of scalars.
    """

    text: str
    arrays: tuple[int, ...]
    numbers: tuple[int, ...]
    scalars: tuple[bool, ...]
    dtype: str


class Value(NamedTuple):
    """A value of the jaxpr: a constant, an argument, or the result of an operation in C."""

    name: str
    dtype: str
    of: Of = "number"


@dataclasses.dataclass
class Operation:
    """An operation in C, which computes a value from others.

    Attributes:
        value: the value that it computes.
        text: its expression; of a maximum, the name of the function; of a sum, what it adds.
        needs: the names of the values from which it computes it.
        given: those of them that are not numbers.
        level: the level at which it is computed.
        block_maximum: whether it is a maximum over the elements of a block.
        is_sum: whether it is a sum over the elements of the tile.
        is_index: whether it depends on nothing but indices and numbers, as random bits do.
    """

    value: Value
    text: str
    needs: tuple[str, ...]
    given: tuple[str, ...]
    level: int = 0
    block_maximum: bool = False
    is_sum: bool = False
    is_index: bool = False


def function(program: Any, places: dict[int, int]) -> Function:
    """The C function ``on_tile`` of a jaxpr.

    Args:
        program: the jaxpr: of the row and the column of the tile's first element, of arrays, the
            first of which is a matrix of all elements of the tile, and of numbers. Its scalar
            results come last.
        places: by its place among the arrays, the place of the result that has its memory.

    Raises:
        Untranslatable: for a primitive, a dtype or a shape that can't be written in this way, and
            for a program of scalars alone that are no sums over the tile.
    """
    row, column, *given = program.jaxpr.invars
    count = sum(x.aval.ndim > 0 for x in given)
    reader = _Reader(given[0].aval.size)
    arrays = [Value(f"a{i}", *reader.form(x.aval)) for i, x in enumerate(given[:count])]
    numbers = [Value(f"n{i}", *reader.form(x.aval)) for i, x in enumerate(given[count:])]
    start = [Value("row", "int32"), Value("column", "int32")]
    known = dict(zip([row, column, *given], [*start, *arrays, *numbers], strict=True))
    results, are_sums = [], []
    for value, aval in zip(reader.values(program.jaxpr, known), program.out_avals, strict=True):
        dtype, of = reader.form(aval)
        is_made = value.name in reader.operations and value.of == of
        are_sums.append(reader.is_sum(value) or value.name == _constant(0, dtype))
        results.append(value if is_made else reader.operation("{0}", dtype, of, value))
    arrays_made = sum(x.ndim > 0 for x in program.out_avals)
    made, scalars = results[:arrays_made], results[arrays_made:]
    if len({x.dtype for x in scalars}) > 1 or any(x.ndim for x in program.out_avals[arrays_made:]):
        raise Untranslatable("scalars of several dtypes, or in front of arrays")
    if not made and not all(are_sums):
        raise Untranslatable("scalars that are no sums")
    read = reader.drop_unread(results)
    gets = [i for i, x in enumerate(arrays) if i in places or x.name in read]
    if not gets or arrays[gets[0]].of != "element":
        gets.insert(0, 0)  # the function counts the elements of the first array
    gets_numbers = [i for i, x in enumerate(numbers) if x.name in read]
    owner = {result: arrays[array].name for array, result in places.items()}
    own, rest = [arrays[i] for i in gets], [numbers[i] for i in gets_numbers]
    return Function(
        _Writer(reader, own, rest, made, scalars, owner).text(),
        tuple(gets),
        tuple(gets_numbers),
        tuple(x.of == "tile" for x in scalars),
        scalars[0].dtype if scalars else "",
    )


class _Reader:
    """Reads the equations of a jaxpr as operations."""

    def __init__(self, tile: int):
        self.tile, self.block = tile, 0
        self.operations: dict[str, Operation] = {}

    def form(self, aval: Any) -> tuple[str, Of]:
        """The dtype of a value, and what it exists once for."""
        dtype, size = str(aval.dtype), aval.size
        if dtype not in TYPES:
            raise Untranslatable(f"dtype {dtype}")
        if not aval.ndim:
            return dtype, "number"
        if size == self.tile:
            return dtype, "element"
        if not size or self.tile % size or self.block not in (0, self.tile // size):
            raise Untranslatable(f"shape {aval.shape}")
        self.block = self.tile // size
        return dtype, "block"

    def values(self, jaxpr: Any, known: dict[Any, Value]) -> list[Value]:
        """The values of a jaxpr's results."""

        def value_of(x: Any) -> Value:
            if not hasattr(x, "val"):
                return known[x]
            dtype, of = self.form(x.aval)
            if of != "number":
                raise Untranslatable("a constant array")
            return Value(_constant(x.val, dtype), dtype)

        for equation in jaxpr.eqns:
            given = [value_of(x) for x in equation.invars]
            closed = called(equation)
            if closed is None:
                made = [self.equation(equation, given)]
            elif closed.consts:
                raise Untranslatable("constant arrays")
            else:
                inner = closed.jaxpr
                made = self.values(inner, dict(zip(inner.invars, given, strict=True)))
            known.update(zip(equation.outvars, made, strict=True))
        return [value_of(x) for x in jaxpr.outvars]

    def equation(self, equation: Any, given: list[Value]) -> Value:
        """The value that an equation computes."""
        name, params, (result, *others) = equation.primitive.name, equation.params, equation.outvars
        if others:
            raise Untranslatable(f"primitive {name}")
        before, (dtype, of) = given[0] if given else Value("", ""), self.form(result.aval)
        match name:
            case "reshape" | "squeeze" | "expand_dims" | "copy" | "stop_gradient":
                is_same = before.of == of or of == "element"  # of which those of a block are equal
                return before if is_same else self.operation("{0}", dtype, of, before)
            case "broadcast_in_dim":
                if before.of == "block" and of == "element":
                    _check_repeats(equation.invars[0].aval.shape, result.aval.shape, params)
                return before
            case "iota":
                text = self.index(result.aval, params["dimension"])
                return self.operation(text, dtype, "block" if text == "o" else of)
            case "reduce_sum":
                if before.of != "element" or of != "number" or dtype not in ("float32", "float64"):
                    raise Untranslatable("a sum that is not over all elements")
                return self.add(before.name, dtype, "tile", before, is_sum=True)
            case "reduce_max" if before.of == of == "block":
                return before  # its elements are equal
            case "reduce_max":
                return self.maximum(before, equation.invars[0].aval.shape, params["axes"], of)
            case "convert_element_type":
                form = _converted(before.dtype, dtype)
            case "bitcast_convert_type":
                form = _same_bits(before.dtype, dtype)
            case "integer_pow":
                form = _power(params["y"])
            case _ if name in FORMS and not (name in OF_NUMBERS and of != "number"):
                known = FORMS[name]
                form = known(before.dtype) if callable(known) else known
            case _:
                raise Untranslatable(f"primitive {name}")
        if of == "element" and all(x.of in ("number", "block") for x in given):
            of = "block" if any(x.of == "block" for x in given) else "number"
        if name == "select_n" and len(given) != 3:
            raise Untranslatable("select_n of more than two cases")
        return self.operation(form, dtype, of, *given)

    def operation(self, form: str, dtype: str, of: Of, *given: Value) -> Value:
        """The value of an operation, for each element that has one."""
        if any(x.of == "tile" for x in given):
            if of != "number":
                raise Untranslatable("an array computed from a sum")
            of = "tile"
        text = form.format(*(x.name for x in given), i="i" if of == "element" else "o")
        text = f"rounded({text})" if dtype == "bfloat16" else f"({TYPES[dtype]})({text})"
        return self.add(text, dtype, of, *given)

    def index(self, aval: Any, axis: int) -> str:
        """The index of an element, or of a block, along an axis."""
        inner, length = math.prod(aval.shape[axis + 1 :]), aval.shape[axis]
        is_first = math.prod(aval.shape[:axis]) == 1
        if is_first and inner == self.block:
            return "o"
        if inner == 1 and length == self.block:
            return "k"
        return f"{{i}} / {inner}" if is_first else f"{{i}} / {inner} % {length}"

    def maximum(self, x: Value, shape: Sequence[int], axes: Sequence[int], of: Of) -> Value:
        """The maximum over the last axes, which are those of a block."""
        kept = [n for axis, n in enumerate(shape) if axis not in axes]
        if x.of != "element" or of != "block" or [*shape[: len(kept)]] != kept:
            raise Untranslatable(f"the maximum over axes {axes} of {shape}")
        if x.dtype not in LARGEST:
            raise Untranslatable(f"the maximum of {x.dtype}")
        return self.add(f"largest_{TYPES[x.dtype]}", x.dtype, of, x, block_maximum=True)

    def add(
        self,
        text: str,
        dtype: str,
        of: Of,
        *given: Value,
        block_maximum: bool = False,
        is_sum: bool = False,
    ) -> Value:
        value = Value(f"x{len(self.operations)}", dtype, of)
        names = tuple(dict.fromkeys(x.name for x in given if x.of != "number"))
        if of == "number" and names:
            raise Untranslatable("a number computed from an array")
        known = [self.operations[x] for x in names if x in self.operations]
        level = max([0, *(x.level for x in known)]) + block_maximum
        is_index = len(known) == len(names) and all(x.is_index for x in known)
        needs = tuple(x.name for x in given)
        made = Operation(value, text, needs, names, level, block_maximum, is_sum, is_index)
        self.operations[value.name] = made
        return value

    def is_sum(self, x: Value) -> bool:
        """Whether a value is a sum over the elements of the tile."""
        return x.name in self.operations and self.operations[x.name].is_sum

    def drop_unread(self, results: Sequence[Value]) -> set[str]:
        """Drop the operations that no result depends on; the names of the values that are read."""
        read = {x.name for x in results}
        for name, x in reversed(self.operations.items()):
            if name in read:
                read.update(x.needs)
        self.operations = {name: x for name, x in self.operations.items() if name in read}
        return read


class _Writer:
    """Writes operations as the loops of a function."""

    def __init__(
        self,
        reader: _Reader,
        arrays: Sequence[Value],
        numbers: Sequence[Value],
        results: Sequence[Value],
        scalars: Sequence[Value],
        owner: dict[int, str],
    ):
        self.tile, self.block, self.operations = reader.tile, reader.block, reader.operations
        self.arrays, self.numbers, self.results = arrays, numbers, results
        self.scalars = scalars
        self.levels = 1 + max([0, *(x.level for x in self.operations.values())])
        self.read: dict[str, set[int]] = {}  # the levels at which a value of elements is needed
        for x in self.operations.values():
            self.note(x)
        # A result is stored once the array whose memory it takes is not read any more.
        self.stored: list[int] = []
        for place, x in enumerate(results):
            last = max([0, *self.read.get(owner.get(place, ""), ())])
            self.stored.append(max(last, self.operations[x.name].level))
            self.read.setdefault(x.name, set()).add(self.stored[-1])
        for x in reversed(self.operations.values()):
            self.postpone(x)

    def note(self, x: Operation) -> None:
        """Note that the operation needs its values at its level; a maximum needs those before."""
        for name in x.given:
            before = x.block_maximum and name in self.operations
            self.read.setdefault(name, set()).add(x.level - before)

    def postpone(self, x: Operation) -> None:
        """Compute a value in the loop that needs it, if that keeps no more values in memory."""
        needed = self.read.get(x.value.name)
        if x.value.of != "element" or not needed or min(needed) == x.level:
            return
        later = min(needed)
        if any(name not in self.operations for name in x.given):
            return  # another result may take the array's memory before
        kept = [y for y in x.given if self.operations[y].value.of == "element"]
        if not x.is_index and sum(later not in self.read[name] for name in kept) > 1:
            return
        x.level = later
        self.read = {}
        for y in self.operations.values():
            self.note(y)
        for at, y in zip(self.stored, self.results, strict=True):
            self.read.setdefault(y.name, set()).add(at)

    def text(self) -> str:
        """The function."""
        first = ("start / " + str(self.block), "0") if self.block else ("0", "start")
        lines = ["const int32_t row = {}, column = {};".format(*first)]
        lines += [
            f"const {STORED[x.dtype]}* {x.name}_ = (const {STORED[x.dtype]}*)in[{i}] + "
            f"{self.first(x)};"
            for i, x in enumerate(self.arrays)
        ]
        lines += [
            f"{STORED[x.dtype]}* r{i} = ({STORED[x.dtype]}*)out[{i}] + {self.first(x)};"
            for i, x in enumerate(self.results)
        ]
        for i, x in enumerate(self.numbers):
            read = _load(x.dtype, f"((const {STORED[x.dtype]}*)number[{i}])[0]")
            lines.append(f"const {TYPES[x.dtype]} {x.name} = {read};")
        lines += [self.line(x) for x in self.operations.values() if x.value.of == "number"]
        sums = [x for x in self.operations.values() if x.is_sum]
        lines += [f"{TYPES[x.value.dtype]} {x.value.name} = 0;" for x in sums]
        levels = [line for level in range(self.levels) for line in self.level(level)]
        if self.block:
            kept = [x.value for x in self.operations.values() if self.is_kept(x)]
            given = [x for x in self.arrays if x.of == "element"]
            made = [(i, x) for i, x in enumerate(self.results) if x.of == "element"]
            buffers = [f"{TYPES[x.dtype]} {x.name}_[{self.length}] ALIGNED;" for x in kept]
            if self.is_padded:
                lines += [f"{STORED[x.dtype]} {x.name}_own[{self.length}] = {{0}};" for x in given]
                buffers += [f"{STORED[x.dtype]} r{i}_own[{self.length}] ALIGNED;" for i, x in made]
                buffers += [f"const int left = n - o * {self.block};"]
                buffers += [self.padded(x) for x in given]
                for i, x in made:
                    size = self.block * np.dtype(x.dtype).itemsize
                    levels.append(f"memcpy(r{i} + o * {self.block}, r{i}_own, {size});")
            blocks = f"for (int o = 0; o < n / {self.block}; o++) {{"
            levels = [blocks, *_indented([*buffers, *levels]), "}"]
        return "\n".join([HEAD, *_indented([*lines, *levels, *self.of_tile()]), "}"])

    @property
    def length(self) -> int:
        """The length of the memory of a block's values."""
        return -(-self.block // VECTOR) * VECTOR

    @property
    def is_padded(self) -> bool:
        """Whether the loops over a block go on to the end of its last vector."""
        return self.length != self.block

    def padded(self, x: Value) -> str:
        """A block of an array with memory for whole vectors: what follows it in the tile, or zeros.

        Values beyond the block are computed, but neither stored nor summed.
        """
        name, size = x.name, self.block * np.dtype(x.dtype).itemsize
        start = f"{name}_ + o * {self.block}"
        return (
            f"const {STORED[x.dtype]}* {name}_padded = left >= {self.length} ? {start} : "
            f"memcpy({name}_own, {start}, {size});"
        )

    def of_tile(self) -> list[str]:
        """What is computed of sums, and the scalars of the tile."""
        lines = [
            self.line(x) for x in self.operations.values() if x.value.of == "tile" and not x.is_sum
        ]
        if self.scalars:
            dtype, count = TYPES[self.scalars[0].dtype], len(self.scalars)
            place = f"start / {self.tile} * {count}"
            lines.append(f"{dtype}* scalars = ({dtype}*)out[{len(self.results)}] + {place};")
        return [*lines, *(f"scalars[{i}] = {x.name};" for i, x in enumerate(self.scalars))]

    def first(self, x: Value) -> str:
        return "start" if x.of == "element" else f"start / {self.block}"

    def is_kept(self, x: Operation) -> bool:
        """Whether another loop needs the value of elements."""
        name = x.value.name
        by_maximum = any(y.block_maximum and name in y.given for y in self.operations.values())
        return x.value.of == "element" and (by_maximum or self.read.get(name, set()) != {x.level})

    def level(self, level: int) -> list[str]:
        """What is computed of a block at this level, and the loop over its elements."""
        own = [x for x in self.operations.values() if x.level == level]
        lines = []
        if level == 0:
            lines += [self.load(x, "o") for x in self.arrays if x.of == "block"]
        for x in own:
            if x.value.of == "block":
                lines.append(self.line(x))
        lines += self.stores(level, "block", "o")
        given = [x for x in self.arrays if x.of == "element" and level in self.read.get(x.name, ())]
        inner = [self.load(x, "i") for x in given]
        if self.is_padded:
            inner = [self.load(x, "k", "padded") for x in given]
        for x in self.operations.values():
            name = x.value.name
            if x.value.of == "element" and x.level < level and level in self.read[name]:
                inner.append(f"const {TYPES[x.value.dtype]} {name} = {name}_[k];")
        for x in own:
            if x.value.of == "element":
                inner.append(self.line(x))
                if self.is_kept(x):
                    inner.append(f"{x.value.name}_[k] = {x.value.name};")
        sums = [x.value.name for x in own if x.is_sum]
        term = f"k < {self.block} ? {{}} : 0" if self.is_padded else "{}"
        inner += [f"{x.value.name} += {term.format(x.text)};" for x in own if x.is_sum]
        inner += self.stores(level, "element", "i")
        if not inner:
            return lines
        if not self.block:
            return [*lines, *_loop("i", "n", inner, sums)]
        inner = [f"const int i = o * {self.block} + k;", *inner]
        return [*lines, *_loop("k", str(self.length), inner, sums)]

    def load(self, x: Value, index: str, memory: str = "") -> str:
        stored = f"{x.name}_{memory}[{index}]"
        return f"const {TYPES[x.dtype]} {x.name} = {_load(x.dtype, stored)};"

    def line(self, x: Operation) -> str:
        text = x.text
        if x.block_maximum:
            (name,) = x.given
            memory = f"{name}_" if name in self.operations else f"{name}_ + o * {self.block}"
            memory = f"{name}_padded" if self.is_padded and name not in self.operations else memory
            text = f"{text}({memory}, {self.block}, {self.length})"
        return f"const {TYPES[x.value.dtype]} {x.value.name} = {text};"

    def stores(self, level: int, of: Of, index: str) -> list[str]:
        is_own = of == "element" and self.is_padded
        target = "r{}_own[k]" if is_own else f"r{{}}[{index}]"
        return [
            f"{target.format(i)} = {_store(x.dtype, x.name)};"
            for i, (x, at) in enumerate(zip(self.results, self.stored, strict=True))
            if at == level and x.of == of
        ]


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {x}" for x in lines]


def _check_repeats(before: Sequence[int], after: Sequence[int], params: Any) -> None:
    """Check that a broadcast repeats each value of a block for the elements of the block."""
    shape = [1] * len(after)
    for axis, length in zip(params["broadcast_dimensions"], before, strict=True):
        shape[axis] = length
    last = max([0, *(axis + 1 for axis, length in enumerate(shape) if length > 1)])
    if shape[:last] != [*after[:last]]:
        raise Untranslatable(f"a broadcast from {tuple(before)} to {tuple(after)}")


def _loop(index: str, end: str, lines: Sequence[str], sums: Sequence[str]) -> list[str]:
    """A loop whose iterations are independent of each other but for sums, as compilers are told."""
    how = f" reduction(+ : {', '.join(sums)})" if sums else ""
    head = f"for (int {index} = 0; {index} < {end}; {index}++) {{"
    return [f"#pragma omp simd{how}", head, *("  " + x for x in lines), "}"]


def _load(dtype: str, stored: str) -> str:
    return f"widened({stored})" if dtype == "bfloat16" else stored


def _store(dtype: str, value: str) -> str:
    return f"upper_half({value})" if dtype == "bfloat16" else value


def _constant(x: Any, dtype: str) -> str:
    """A constant in C."""
    if dtype not in FLOATS:
        return f"(({TYPES[dtype]}){int(x)}{'u' if dtype.startswith('u') else ''})"
    suffix = "" if dtype == "float64" else "f"
    x = float(x)
    if math.isnan(x):
        return f'__builtin_nan{suffix}("")'
    if math.isinf(x):
        return f"({'-' if x < 0 else ''}__builtin_inf{suffix}())"
    return f"({x.hex()}{suffix})"


def _converted(before: str, after: str) -> str:
    """The conversion of a number; to an integer, as in XLA, the nearest one that exists."""
    if after == "bool":
        return "{0} != 0"
    if before not in FLOATS or after in FLOATS:
        return "{0}"
    limits = np.iinfo(after)
    if after in ("int32", "uint32"):
        above = f"{float(limits.max + 1).hex()}f"
        nearest = f"{{0}} >= {above} ? {limits.max}u : ({TYPES[after]}){{0}}"
    else:
        nearest = f"{{0}} > {limits.max} ? {limits.max} : (int32_t){{0}}"
    least = f"({TYPES[after]})({limits.min})" if limits.min else "0"
    return f"{{0}} != {{0}} ? 0 : {{0}} <= {limits.min}.0f ? {least} : ({nearest})"


def _same_bits(before: str, after: str) -> str:
    """The same bits in another dtype of the same size."""
    if before == after:
        return "{0}"
    if before == "bfloat16" and after in ("int16", "uint16"):
        return "upper_half({0})"
    if before in ("int16", "uint16") and after == "bfloat16":
        return "widened((uint16_t){0})"
    if before in ("int32", "uint32") and after == "float32":
        return "float_of_bits({0})"
    if before == "float32" and after in ("int32", "uint32"):
        return "bits_of_float({0})"
    if before not in FLOATS and after not in FLOATS:
        return "{0}"
    raise Untranslatable(f"bits of {before} as {after}")


def _power(exponent: int) -> str:
    if not 1 <= abs(exponent) <= 4:
        raise Untranslatable(f"the power {exponent}")
    product = " * ".join(["{0}"] * abs(exponent))
    return product if exponent > 0 else f"1 / ({product})"


LARGEST = ("float32", "float64", "int8", "uint8", "int32", "uint32")
"""Dtypes of which ``frame.c`` has a maximum."""

FLOATS = ("float32", "float64", "bfloat16")
OF_NUMBERS = ("exp", "log", "pow")
"""Primitives that the kernel computes of numbers only: loops over them would be slow."""


def _of_float(form: str) -> Callable[[str], str]:
    """A function of C's library, whose name ends with f for float."""

    def of(dtype: str) -> str:
        if dtype not in FLOATS:
            raise Untranslatable(f"{form} of {dtype}")
        return form.replace("*", "" if dtype == "float64" else "f")

    return of


def _abs(dtype: str) -> str:
    return _of_float("__builtin_fabs*({0})")(dtype) if dtype in FLOATS else "{0} < 0 ? -{0} : {0}"


def _div(dtype: str) -> str:
    return _of_float("{0} / {1}")(dtype)


def _not(dtype: str) -> str:
    return "!{0}" if dtype == "bool" else "~{0}"


def _shift(operator: str, *, logical: bool) -> Callable[[str], str]:
    def of(dtype: str) -> str:
        width = 8 * np.dtype(dtype).itemsize
        unsigned = f"(uint{width}_t){{0}}"
        if not logical:
            return f"{{0}} >> ({{1}} < {width} ? {{1}} : {width - 1})"
        return f"{{1}} < {width} ? {unsigned} {operator} {{1}} : 0"

    return of


FORMS: dict[str, str | Callable[[str], str]] = {
    "abs": _abs,
    "add": "{0} + {1}",
    "and": "{0} & {1}",
    "clamp": "{1} < {0} ? {0} : ({1} > {2} ? {2} : {1})",
    "div": _div,
    "eq": "{0} == {1}",
    "exp": _of_float("__builtin_exp*({0})"),
    "ge": "{0} >= {1}",
    "gt": "{0} > {1}",
    "is_finite": "{0} - {0} == 0",
    "le": "{0} <= {1}",
    "log": _of_float("__builtin_log*({0})"),
    "lt": "{0} < {1}",
    "max": "({0} > {1} || {0} != {0}) ? {0} : {1}",
    "min": "({0} < {1} || {0} != {0}) ? {0} : {1}",
    "mul": "{0} * {1}",
    "ne": "{0} != {1}",
    "neg": "-{0}",
    "not": _not,
    "or": "{0} | {1}",
    "pow": _of_float("__builtin_pow*({0}, {1})"),
    "rsqrt": _of_float("1 / __builtin_sqrt*({0})"),
    "select_n": "{0} ? {2} : {1}",
    "shift_left": _shift("<<", logical=True),
    "shift_right_arithmetic": _shift(">>", logical=False),
    "shift_right_logical": _shift(">>", logical=True),
    "sign": "{0} > 0 ? 1 : ({0} < 0 ? -1 : {0})",
    "sqrt": _of_float("__builtin_sqrt*({0})"),
    "square": "{0} * {0}",
    "sub": "{0} - {1}",
    "xor": "{0} ^ {1}",
}
"""C of one element, for the dtype of the first operand."""

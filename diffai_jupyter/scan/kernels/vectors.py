"""A small vocabulary for vector code: loops, loads, stores and sums of lanes, made into machine code by LLVM.

Vectors are of fixed length whatever the processor, and LLVM may neither reorder additions nor fuse them with
multiplications, so that a program gives the same bits on every machine.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

F64, F32 = ir.DoubleType(), ir.FloatType()
I64, I32, I16, I8 = ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.IntType(8)
_BYTES = {"double": 8, "float": 4, "half": 2, "i64": 8, "i32": 4, "i16": 2, "i8": 1}

Value = Any
"""A value of the program that is being made."""


def number(value: int) -> Value:
    """Return an integer constant of 64 bits."""
    return ir.Constant(I64, value)


def vector(element: ir.Type, lanes: int) -> ir.VectorType:
    """Return the type of a vector."""
    return ir.VectorType(element, lanes)


def splat(element: ir.Type, lanes: int, value: float) -> Value:
    """Return a vector that holds one value in all its lanes."""
    return ir.Constant(vector(element, lanes), [value] * lanes)


class Program:
    """One function under construction; its pointers do not overlap.

    Parameters
    ----------
    name : str
        Name of the function.
    arguments : sequence of type
        Types of its arguments.
    """

    def __init__(self, name: str, arguments: Sequence[ir.Type]) -> None:
        self.module = ir.Module(name)
        self.module.triple = llvm.get_process_triple()
        self.name = name
        self._function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), arguments), name)
        for argument in self._function.args:
            if isinstance(argument.type, ir.PointerType):
                argument.add_attribute("noalias")
        self.build = ir.IRBuilder(self._function.append_basic_block())

    @property
    def arguments(self) -> Sequence[Value]:
        """The arguments of the function."""
        return tuple(self._function.args)

    def loop(
        self, start: Value, stop: Value, step: int, state: Sequence[Value],
        body: Callable[[Value, Sequence[Value]], Sequence[Value]],
    ) -> Sequence[Value]:
        """Repeat `body` for ``i = start, start + step, …`` as long as a whole step fits below `stop`.

        Parameters
        ----------
        start, stop : int64 value
            Bounds.
        step : int
            Distance of two rounds.
        state : sequence of values
            What the first round starts from.
        body : callable
            Takes ``i`` and the state, returns the state of the next round.

        Returns
        -------
        sequence of values
            The state after the last round.
        """
        build = self.build
        before = build.block
        head, inside, after = (self._function.append_basic_block() for _ in range(3))
        build.branch(head)
        build.position_at_end(head)
        at = build.phi(I64)
        at.add_incoming(start, before)
        carried = [build.phi(value.type) for value in state]
        for phi, value in zip(carried, state, strict=True):
            phi.add_incoming(value, before)
        following = build.add(at, number(step))
        build.cbranch(build.icmp_signed("<=", following, stop), inside, after)
        build.position_at_end(inside)
        left = body(at, carried)
        for phi, value in zip(carried, left, strict=True):
            phi.add_incoming(value, build.block)
        at.add_incoming(following, build.block)
        build.branch(head)
        build.position_at_end(after)
        return carried

    def each(self, start: Value, stop: Value, step: int, body: Callable[[Value], None]) -> None:
        """Repeat `body` as `loop` does, without a state."""

        def stateless(at: Value, state: Sequence[Value]) -> Sequence[Value]:
            body(at)
            return state

        self.loop(start, stop, step, [], stateless)

    def across(self, count: Value, lanes: int, body: Callable[[Value, int], None]) -> None:
        """Go through `count` elements with ``body(at, lanes)``: vectors first, then what is left one by one."""

        def stateless(at: Value, state: Sequence[Value], wide: int) -> Sequence[Value]:
            body(at, wide)
            return state

        self.reduce([], count, lanes, stateless)

    def reduce(
        self, kept: Sequence[tuple[Value, ir.Type]], count: Value, lanes: int,
        body: Callable[[Value, Sequence[Value], int], Sequence[Value]],
    ) -> None:  # fmt: skip
        """Go through `count` elements with ``body(at, state, lanes)``: vectors first, then what is left one by one.

        Parameters
        ----------
        kept : sequence of (pointer, type)
            Where the vectors of the state lie before and after, and what of.
        count : int64 value
            How many elements there are.
        lanes : int
            Elements of a vector, a power of two.
        body : callable
            Returns the state of the next round.
        """
        done = number(0)
        for wide in (lanes, 1):
            state = [self.get(pointer, element, wide) for pointer, element in kept]
            left = self.loop(done, count, wide, state, functools.partial(_with_lanes, body, wide))
            for (pointer, _), value in zip(kept, left, strict=True):
                self.put(value, pointer)
            done = self.build.and_(count, number(-lanes))

    def add_to_lanes(self, sums: Value, lanes: int, count: Value, values: Callable[[Value, int], Value]) -> None:
        """Add element i of `count` to sum ``i mod lanes``, one after the other.

        Parameters
        ----------
        sums : pointer to double
            So many as there are lanes, a power of two.
        lanes, count
            How many sums and elements there are.
        values : callable
            Takes a place and a number of elements, returns a vector of doubles.
        """
        half = lanes // 2
        for start in (0, half):
            place = self.build.gep(sums, [number(start)])

            def add(at: Value, state: Sequence[Value], start: int = start) -> Sequence[Value]:
                first = self.build.add(at, number(start))
                return [
                    self.build.fadd(total, values(self.build.add(first, number(i * 8)), 8))
                    for i, total in enumerate(state)
                ]

            state = [self.load(place, number(i * 8), 8) for i in range(half // 8)]
            for i, total in enumerate(self.loop(number(0), count, lanes, state, add)):
                self.store(total, place, number(i * 8))
        whole = self.build.and_(count, number(-lanes))

        def add_one(at: Value) -> None:
            lane = self.build.sub(at, whole)
            self.store(self.build.fadd(self.load(sums, lane, 1), values(at, 1)), sums, lane)

        self.each(whole, count, 1, add_one)

    def fill(self, pointer: Value, count: Value) -> None:
        """Put zeros into `count` doubles."""
        self.across(count, 8, lambda at, lanes: self.store(splat(F64, lanes, 0.0), pointer, at))

    def copy(self, source: Value, target: Value, count: Value) -> None:
        """Copy `count` elements."""
        self.across(count, 8, lambda at, lanes: self.store(self.load(source, at, lanes), target, at))

    def get(self, pointer: Value, element: ir.Type, lanes: int) -> Value:
        """Return the vector that lies at an address, whatever kind of pointer holds that."""
        return self.load(self.build.bitcast(pointer, element.as_pointer()), number(0), lanes)

    def put(self, value: Value, pointer: Value) -> None:
        """Put a vector at an address, whatever kind of pointer holds that."""
        self.store(value, self.build.bitcast(pointer, value.type.element.as_pointer()), number(0))

    def widened(self, value: Value) -> Value:
        """Return a vector of floats in 64 bits."""
        return value if value.type.element == F64 else self.build.fpext(value, vector(F64, value.type.count))

    def load(self, pointer: Value, at: Value, lanes: int) -> Value:
        """Return the vector of elements `at`, ``at + 1``, … behind a pointer."""
        element = pointer.type.pointee
        place = self.build.bitcast(self.build.gep(pointer, [at]), vector(element, lanes).as_pointer())
        found = self.build.load(place)
        found.align = _BYTES[str(element)]
        return found

    def store(self, value: Value, pointer: Value, at: Value) -> None:
        """Put a vector at element `at` behind a pointer."""
        place = self.build.bitcast(self.build.gep(pointer, [at]), value.type.as_pointer())
        self.build.store(value, place).align = _BYTES[str(value.type.element)]

    def magnitude(self, value: Value) -> Value:
        """Return the absolute values of a vector of floats."""
        return self._intrinsic("fabs", value)

    def rounded(self, value: Value) -> Value:
        """Return a vector of floats rounded to whole numbers, ties to even."""
        return self._intrinsic("roundeven", value)

    def _intrinsic(self, name: str, value: Value) -> Value:
        kind = value.type
        full = f"llvm.{name}.v{kind.count}{'f64' if kind.element == F64 else 'f32'}"
        function = self.module.globals.get(full) or ir.Function(self.module, ir.FunctionType(kind, [kind]), full)
        return self.build.call(function, [value])

    def spread(self, value: Value, kind: ir.VectorType) -> Value:
        """Return a vector of a double in all lanes, rounded to floats of 32 bits where the type asks for them."""
        return self.filled(value if kind.element == F64 else self.build.fptrunc(value, kind.element), kind)

    def filled(self, value: Value, kind: ir.VectorType) -> Value:
        """Return a vector that holds one element in all lanes."""
        single = self.build.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
        return self.build.shuffle_vector(single, single, ir.Constant(vector(I32, kind.count), [0] * kind.count))

    def smaller(self, one: Value, other: Value) -> Value:
        """Return the smaller of two vectors lane by lane; `other` where one of them is NaN."""
        return self.build.select(self.build.fcmp_ordered("<", one, other), one, other)

    def larger(self, one: Value, other: Value) -> Value:
        """Return the larger of two vectors lane by lane; `other` where one of them is NaN."""
        return self.build.select(self.build.fcmp_ordered(">", one, other), one, other)

    def counted(self, total: Value, mask: Value) -> Value:
        """Add one to the lanes of `total` whose mask is set."""
        return self.build.sub(total, self.build.sext(mask, total.type))

    def halved(self, value: Value, join: Callable[[Value, Value], Value]) -> Value:
        """Join the lower half of a vector with the upper one until a single element is left, and return that."""
        while value.type.count > 1:
            half = value.type.count // 2
            low, high = (
                self.build.shuffle_vector(value, value, ir.Constant(vector(I32, half), list(places)))
                for places in (range(half), range(half, 2 * half))
            )
            value = join(low, high)
        return self.build.extract_element(value, ir.Constant(I32, 0))

    def compiled(self) -> Callable[..., None]:
        """Return the finished function as one that Python can call; it runs without the interpreter's lock.

        Pointers are passed as addresses.
        """
        self.build.ret_void()
        kinds = (
            ctypes.c_void_p if isinstance(argument.type, ir.PointerType)
            else ctypes.c_double if argument.type == F64 else ctypes.c_int64
            for argument in self._function.args
        )  # fmt: skip
        machine = _machine()
        module = llvm.parse_assembly(str(self.module))
        module.verify()
        builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=1))
        builder.getModulePassManager().run(module, builder)
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        function = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(self.name))
        function.engine = engine  # type: ignore[attr-defined]  # the code lives as long as its engine
        return function


def _with_lanes(
    body: Callable[[Value, Sequence[Value], int], Sequence[Value]], lanes: int, at: Value, state: Sequence[Value]
) -> Sequence[Value]:
    return body(at, state, lanes)


def _machine() -> llvm.TargetMachine:
    """Return the processor at hand; an engine takes it over, so each needs one of its own."""
    _prepare()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )


@functools.cache
def _prepare() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@functools.cache
def has_halves() -> bool:
    """Say whether the processor itself turns 16-bit floats into wider ones."""
    features = llvm.get_host_cpu_features()
    return bool(features.get("f16c") or features.get("fullfp16") or "aarch64" in llvm.get_process_triple())

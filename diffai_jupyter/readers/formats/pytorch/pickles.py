"""A machine that runs the opcodes of a pickle and does nothing: no name is looked up, no call is made.

``pickle.Unpickler`` imports what a file names; a list of what is allowed there has been got around again and
again. Here a name stays a `Global`, a call becomes a `Stub`, and only the functions of this package in a
table that is handed in make anything of their arguments.

References
----------
``pickletools`` of the standard library describes each opcode; PEP 307, PEP 3154 and PEP 574 the protocols.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Mapping

from diffai_jupyter.readers.formats.pytorch.workings import OPERATION_LIMIT, Workings

_LONGEST = 1 << 10
_PROTOCOL = 5


class Machine(Workings):
    """Reads the pickles of a file, one after the other."""

    def load(self) -> object:
        """Run one pickle.

        Raises
        ------
        FormatError
            If it is damaged, or larger than any checkpoint needs.
        """
        self._stack, self._marks, self._memo = [], [], {}
        read, operations, left = self._read, _OPERATIONS, self._session.left
        most = left
        try:
            while left:
                left -= 1
                code = read(1)
                if code == b".":
                    return self._stack.pop()
                operations[code](self)
        except (KeyError, IndexError):
            self._refuse("the pickle is damaged, or the file is no pickle")
        finally:
            # a pickle inside of this one has taken its own
            self._session.left -= most - left
        return self._refuse(f"the pickle needs more than {OPERATION_LIMIT} operations")

    def _push(self, found: object) -> None:
        self._stack.append(found)

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _protocol(self) -> None:
        if (protocol := self._number(1)) > _PROTOCOL:
            self._refuse(f"the pickle is of protocol {protocol}, and protocols up to {_PROTOCOL} are known")

    def _pop(self) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def _integer_line(self) -> None:
        line = self._line()
        self._push(line == b"01" if line in (b"00", b"01") else self._decimal(line))

    def _float_line(self) -> None:
        try:
            self._push(float(self._line()))
        except ValueError:
            self._refuse("a number of the pickle is damaged")

    def _string_line(self) -> None:
        line = self._line().strip()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            self._refuse("a string of the pickle is damaged")
        try:
            text = codecs.escape_decode(line[1:-1])[0]
        except ValueError:
            self._refuse("a string of the pickle is damaged")
        self._push(text.decode("ascii") if text.isascii() else text)

    def _long_text(self) -> None:
        self._stack.append(self._string(int.from_bytes(self._read(4), "little"), True))

    def _unicode_line(self) -> None:
        try:
            self._push(self._line().decode("raw-unicode-escape"))
        except UnicodeDecodeError:
            self._refuse("a text of the pickle is damaged")

    def _long(self, width: int) -> None:
        count = self._number(width)
        if count > _LONGEST:
            self._refuse(f"the pickle holds a number of {count} bytes")
        self._push(self._number(count, is_signed=True))

    def _tuple_above_mark(self) -> None:
        stack, mark = self._stack, self._marks.pop()
        stack[mark:] = [tuple(stack[mark:])]

    def _take_tuple(self, count: int) -> None:
        if count > len(self._stack):
            raise IndexError
        found = tuple(self._stack[-count:])
        self._stack[-count:] = [found]

    def _take_dict(self) -> None:
        flat, made = self._above_mark(), dict[object, object]()
        self._update(made, flat)
        self._push(made)

    def _append(self) -> None:
        item = self._stack.pop()
        self._extend(self._stack[-1], [item])

    def _appends(self) -> None:
        items = self._above_mark()
        self._extend(self._stack[-1], items)

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update(self._stack[-1], [key, value])

    def _set_items(self) -> None:
        flat = self._above_mark()
        self._update(self._stack[-1], flat)

    def _global_line(self) -> None:
        module, name = self._line(), self._line()
        self._push(self._named(self._text(module), self._text(name)))

    def _global_stack(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push(self._named(module, name))

    def _extension(self, width: int) -> None:
        # The numbers stand for names that a program registers before it unpickles.
        self._push(self._named("copyreg", f"extension_{self._number(width)}"))

    def _reduce(self) -> None:
        args, made = self._stack.pop(), self._stack.pop()
        self._push(self._call(made, args))

    def _instance(self) -> None:
        module, name = self._line(), self._line()
        made = self._named(self._text(module), self._text(name))
        self._push(self._call(made, tuple(self._above_mark())))

    def _object(self) -> None:
        made, *args = self._above_mark() or [None]
        self._push(self._call(made, tuple(args)))

    def _new(self) -> None:
        args, made = self._stack.pop(), self._stack.pop()
        self._push(self._call(made, args, is_bare=True))

    def _new_with_names(self) -> None:
        names, args, made = self._stack.pop(), self._stack.pop(), self._stack.pop()
        found = self._call(made, args, is_bare=not names)
        self._push(found)

    def _build(self) -> None:
        state = self._stack.pop()
        self._set_state(self._stack[-1], state)

    def _out_of_band(self) -> None:
        self._refuse("the pickle needs buffers that are not in the file")

    def _put_short(self) -> None:
        self._memo[self._read(1)[0]] = self._stack[-1]

    def _put_long(self) -> None:
        self._memo[int.from_bytes(self._read(4), "little")] = self._stack[-1]

    def _get_long(self) -> None:
        self._stack.append(self._memo[int.from_bytes(self._read(4), "little")])

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]



_DOUBLE = struct.Struct(">d")

_OPERATIONS: Mapping[bytes, Callable[[Machine], object]] = {
    b"": Machine._cut,
    b"(": Machine._mark,
    b"0": Machine._pop,
    b"1": Machine._above_mark,
    b"2": lambda m: m._stack.append(m._stack[-1]),
    b"\x80": Machine._protocol,
    b"\x95": lambda m: m.take(8),
    b"N": lambda m: m._stack.append(None),
    b"\x88": lambda m: m._stack.append(True),
    b"\x89": lambda m: m._stack.append(False),
    b"I": Machine._integer_line,
    b"L": lambda m: m._stack.append(m._decimal(m._line().removesuffix(b"L"))),
    b"F": Machine._float_line,
    b"S": Machine._string_line,
    b"V": Machine._unicode_line,
    b"J": lambda m: m._stack.append(m._number(4, True)),
    b"K": lambda m: m._stack.append(m._read(1)[0]),
    b"M": lambda m: m._stack.append(m._number(2)),
    b"\x8a": lambda m: m._long(1),
    b"\x8b": lambda m: m._long(4),
    b"G": lambda m: m._stack.append(_DOUBLE.unpack(m.take(8))[0]),
    b"U": lambda m: m._old_string(m._number(1)),
    b"T": lambda m: m._old_string(m._number(4)),
    b"C": lambda m: m._stack.append(m._string(m._number(1), False)),
    b"B": lambda m: m._stack.append(m._string(m._number(4), False)),
    b"\x8e": lambda m: m._stack.append(m._string(m._number(8), False)),
    b"\x96": lambda m: m._stack.append(m._string(m._number(8), False)),
    b"\x8c": lambda m: m._stack.append(m._string(m._number(1), True)),
    b"X": Machine._long_text,
    b"\x8d": lambda m: m._stack.append(m._string(m._number(8), True)),
    b")": lambda m: m._stack.append(()),
    b"\x85": lambda m: m._take_tuple(1),
    b"\x86": lambda m: m._take_tuple(2),
    b"\x87": lambda m: m._take_tuple(3),
    b"t": Machine._tuple_above_mark,
    b"]": lambda m: m._stack.append([]),
    b"l": lambda m: m._stack.append(m._above_mark()),
    b"a": Machine._append,
    b"e": Machine._appends,
    # sets are kept as lists: their members may not be hashed
    b"\x8f": lambda m: m._stack.append([]),
    b"\x90": Machine._appends,
    b"\x91": lambda m: m._stack.append(m._above_mark()),
    b"}": lambda m: m._stack.append({}),
    b"d": Machine._take_dict,
    b"s": Machine._set_item,
    b"u": Machine._set_items,
    b"g": lambda m: m._get(m._decimal(m._line())),
    b"h": lambda m: m._stack.append(m._memo[m._read(1)[0]]),
    b"j": Machine._get_long,
    b"p": lambda m: m._put(m._decimal(m._line())),
    b"q": Machine._put_short,
    b"r": Machine._put_long,
    b"\x94": lambda m: m._put(len(m._memo)),
    b"c": Machine._global_line,
    b"\x93": Machine._global_stack,
    b"\x82": lambda m: m._extension(1),
    b"\x83": lambda m: m._extension(2),
    b"\x84": lambda m: m._extension(4),
    b"R": Machine._reduce,
    b"i": Machine._instance,
    b"o": Machine._object,
    b"\x81": Machine._new,
    b"\x92": Machine._new_with_names,
    b"b": Machine._build,
    b"P": lambda m: m._identify(m._text(m._line())),
    b"Q": lambda m: m._identify(m._stack.pop()),
    b"\x97": Machine._out_of_band,
    b"\x98": lambda m: None,
}

"""A reader of pickles that runs nothing: plain values, tensors as references into the file, stand-ins for all the rest.

A pickle is a program, and a class that it names is code. Here no name is ever looked up: a handful mean something to this
reader (an ordered dict, the rebuilding of a tensor, a NumPy scalar), every other becomes a `StandIn` that records what the
pickle did to it and does nothing. Work and memory are bounded by the bytes read and by MAX_OPERATIONS.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

MAX_OPERATIONS = 30_000_000  # a list of that many numbers beside the weights; about a minute
# Small enough that distinct integers have distinct hashes: a dict of colliding keys would take quadratic time.
MAX_KEY_BITS = 60


@dataclass(eq=False, repr=False)
class StandIn:
    """Stands where an object of a foreign class was, or the class itself (`made` False); it has no behaviour.

    arguments: what it was made of; state: what the pickle would have set on it; entries: what it was filled with, as a
    dict's items or a list's elements.
    """

    name: str
    made: bool = False
    arguments: tuple[Any, ...] = ()
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


class Stream(Protocol):
    """What a pickle is read from; reads are clamped to what it holds, so that none can claim more memory."""

    def read(self, size: int, /) -> bytes:
        """The next bytes."""

    def readline(self) -> bytes:
        """The rest of the line."""


class _Mark:
    """What MARK leaves on the stack; there is one."""


_MARK = _Mark()
Call = Callable[[tuple[Any, ...]], Any]


def read_pickle(stream: Stream, calls: dict[str, Call], persistent: Callable[[Any], Any]) -> Any:
    """The value of the next pickle of a stream, such as BytesIO or mmap.

    calls: what a call of a name gives ("torch._utils._rebuild_tensor_v2"), given its arguments; persistent: what a
    persistent id stands for. pickle.UnpicklingError for what is no pickle.
    """
    return _Machine(calls, persistent).run(stream)


class _Machine:
    """The stack machine of a pickle. Methods are named by opcode; the argument is the opcode's own, or None."""

    def __init__(self, calls: dict[str, Call], persistent: Callable[[Any], Any]) -> None:
        self.calls, self.persistent = calls, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: Stream) -> Any:
        """Execute until STOP."""
        steps: dict[str, Callable[[Any], None]] = {}
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
            if count > MAX_OPERATIONS:
                raise pickle.UnpicklingError(f"more than {MAX_OPERATIONS} operations")
            name = opcode.name
            if name == "STOP":
                return self.pop()
            if name in _PUSHED:
                self.stack.append(argument)
                continue
            step = steps.get(name)
            if step is None:
                step = steps[name] = getattr(self, f"do_{name.lower()}", None) or _unknown(name)
            step(argument)
        raise pickle.UnpicklingError("no end of the pickle")

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise pickle.UnpicklingError("an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise pickle.UnpicklingError("an empty stack")
        return self.stack[-1]

    def marked(self) -> list[Any]:
        """Everything above the last mark, taken off with it."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise pickle.UnpicklingError("no mark on the stack")

    def do_proto(self, version: int) -> None: ...

    def do_frame(self, size: int) -> None: ...

    def do_mark(self, _: None) -> None:
        self.stack.append(_MARK)

    def do_pop(self, _: None) -> None:
        if not self.stack:
            raise pickle.UnpicklingError("an empty stack")
        self.stack.pop()

    def do_pop_mark(self, _: None) -> None:
        self.marked()

    def do_dup(self, _: None) -> None:
        self.stack.append(self.top())

    def do_none(self, _: None) -> None:
        self.stack.append(None)

    def do_newtrue(self, _: None) -> None:
        self.stack.append(True)

    def do_newfalse(self, _: None) -> None:
        self.stack.append(False)

    def do_put(self, index: int) -> None:
        self.memo[index] = self.top()

    do_binput = do_long_binput = do_put

    def do_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.top()

    def do_get(self, index: int) -> None:
        if index not in self.memo:
            raise pickle.UnpicklingError(f"memo entry {index} that was not stored")
        self.stack.append(self.memo[index])

    do_binget = do_long_binget = do_get

    def do_empty_list(self, _: None) -> None:
        self.stack.append([])

    def do_empty_tuple(self, _: None) -> None:
        self.stack.append(())

    def do_empty_dict(self, _: None) -> None:
        self.stack.append({})

    do_empty_set = do_empty_list  # nothing here asks whether something is in it, and hashing could be made to last

    def do_list(self, _: None) -> None:
        self.stack.append(self.marked())

    do_frozenset = do_list

    def do_tuple(self, _: None) -> None:
        self.stack.append(tuple(self.marked()))

    def do_tuple1(self, _: None) -> None:
        self.stack.append((self.pop(),))

    def do_tuple2(self, _: None) -> None:
        second, first = self.pop(), self.pop()
        self.stack.append((first, second))

    def do_tuple3(self, _: None) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self.stack.append((first, second, third))

    def do_dict(self, _: None) -> None:
        items = self.marked()
        self.stack.append({})
        self._fill(items)

    def do_setitem(self, _: None) -> None:
        value, key = self.pop(), self.pop()
        self._fill([key, value])

    def do_setitems(self, _: None) -> None:
        self._fill(self.marked())

    def _fill(self, items: list[Any]) -> None:
        target = self.top()
        entries = target.entries if isinstance(target, StandIn) else target
        if not isinstance(entries, dict) or len(items) % 2:
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            entries[_as_key(key)] = value

    def do_append(self, _: None) -> None:
        self._extend([self.pop()])

    def do_appends(self, _: None) -> None:
        self._extend(self.marked())

    do_additems = do_appends

    def _extend(self, items: list[Any]) -> None:
        target = self.top()
        elements = target.elements if isinstance(target, StandIn) else target
        if not isinstance(elements, list):
            raise pickle.UnpicklingError(f"elements for a {type(target).__name__}")
        elements.extend(items)

    def do_global(self, names: str) -> None:
        self.stack.append(StandIn(names.replace(" ", ".", 1)))

    def do_stack_global(self, _: None) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise pickle.UnpicklingError("a name that is no text")
        self.stack.append(StandIn(f"{module}.{name}"))

    def do_ext1(self, code: int) -> None:
        self.stack.append(StandIn(f"copyreg extension {code}"))

    do_ext2 = do_ext4 = do_ext1

    def do_reduce(self, _: None) -> None:
        arguments, function = self.pop(), self.pop()
        self._call(function, arguments)

    def do_newobj(self, _: None) -> None:
        arguments, kind = self.pop(), self.pop()
        self._call(kind, arguments)

    def do_newobj_ex(self, _: None) -> None:
        keywords, arguments, kind = self.pop(), self.pop(), self.pop()
        self._call(kind, arguments if not keywords else (*_checked(arguments), keywords))

    def do_inst(self, names: str) -> None:
        self._call(StandIn(names.replace(" ", ".", 1)), tuple(self.marked()))

    def do_obj(self, _: None) -> None:
        kind, *arguments = self.marked() or [None]
        self._call(kind, tuple(arguments))

    def _call(self, function: Any, arguments: Any) -> None:
        name = function.name if isinstance(function, StandIn) and not function.made else "an object that was made"
        known = self.calls.get(name)
        arguments = _checked(arguments)
        self.stack.append(StandIn(name, True, arguments) if known is None else known(arguments))

    def do_build(self, _: None) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, StandIn) and target.made:
            target.state = state  # on a dict it would be attributes, which are of no use here

    def do_persid(self, identifier: str) -> None:
        self.stack.append(self.persistent(identifier))

    def do_binpersid(self, _: None) -> None:
        self.stack.append(self.persistent(self.pop()))


_PUSHED = frozenset(
    [
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
        *("SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE"),
        *("SHORT_BINUNICODE", "BINUNICODE8"),
    ]
)


def _unknown(name: str) -> Callable[[Any], None]:
    raise pickle.UnpicklingError(f"the operation {name}, which no checkpoint has")


def _checked(arguments: Any) -> tuple[Any, ...]:
    if not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("a call whose arguments are no tuple")
    return arguments


def _as_key(key: Any) -> Any:
    """A key that is hashed in constant time: what is no plain value stands for itself alone."""
    if key is None or isinstance(key, (str, bool, StandIn)) or (type(key) is int and key.bit_length() <= MAX_KEY_BITS):
        return key
    return StandIn(f"a {type(key).__name__} as key", True, (key,))

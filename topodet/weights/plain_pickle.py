"""An unpickler that can only create plain types and tensors.

Python's own unpickler imports and calls what a pickle names. This one executes opcodes from a table, and calls only the
few functions that `torch.save` uses for tensors, so it is safe for untrusted data.
"""

from __future__ import annotations

import collections
import math
import pickletools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import WeightsError

# Far above what any checkpoint has.
MAX_PICKLE = 2**28  # bytes of the pickle, without the tensors
MAX_STEPS = 500_000  # about fifty per tensor
MAX_INTEGER = 128  # bits
# Limits of tensors that are larger than their bytes in the file, as a tensor that was saved expanded.
MAX_EXPANDED = 2**20  # elements
MAX_COPIES = 16  # times the size of the file, by tensors that share bytes

_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_GETATTR = "builtins.getattr"  # by which pickles name methods
# Tensors that are not plain, by the name in their pickles.
_OTHER_KINDS = {
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch.serialization._get_layout": "sparse",
    "torch._utils._rebuild_qtensor": "quantized",
    **{f"torch.{name}Storage": "quantized" for name in ("QInt8", "QInt32", "QUInt8", "QUInt4x2", "QUInt2x4")},
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "on the meta device, without values",
}


class Skipped:
    """Placeholder for an object in a file that is not a tensor or a plain type; the object was not created."""


@dataclass(frozen=True)
class Storage:
    """Bytes of the file, uint8 [N], and the dtype of their values; None if each tensor has its own."""

    data: Tensor
    dtype: torch.dtype | None


def width(kind: str) -> int:
    """Return the bytes per value in a kind of storage, e.g. "Float"; 1 for one without a dtype."""
    dtype = _DTYPES.get(kind)
    return 1 if dtype is None else dtype.itemsize


def storage_of(kind: str, data: bytearray, numel: int) -> Storage:
    """Return a storage with the given number of values.

    Raises:
        WeightsError: the number of bytes differs.
    """
    if len(data) != numel * width(kind):
        raise WeightsError(
            f"a tensor's data has {len(data)} bytes, not {numel} values of {width(kind)}: it is damaged, fetch it again"
        )
    tensor = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return Storage(tensor, _DTYPES.get(kind))


@dataclass(frozen=True)
class _Name:
    """A function or type that the pickle names; it is looked up in `PlainUnpickler._call`, never imported."""

    text: str

    @property
    def last(self) -> str:
        return self.text.rpartition(".")[2]


_MARK = object()


class PlainUnpickler:
    """Runs pickles one after the other.

    Args:
        storage: (kind, key, values) to the bytes of a tensor.
        skip_objects: replace other objects by `Skipped` instead of refusing them; `skipped` has their names.
        size: size of the file in bytes.
        check_sizes: whether the storages contain their bytes; otherwise tensors are empty.
    """

    def __init__(
        self, storage: Callable[[str, str, int], Storage], skip_objects: bool, size: int, *, check_sizes: bool = True
    ):
        self.storage = storage
        self.skip_objects = skip_objects
        self.check_sizes = check_sizes
        self.budget = MAX_COPIES * size + MAX_EXPANDED
        self.skipped: set[str] = set()
        self.steps = {name: getattr(self, f"_{name.lower()}") for name in _STEPS}

    def run(self, file: IO[bytes]) -> Any:
        """Run one pickle and leave the file position after it."""
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        begin = file.tell()
        for count, (opcode, argument, place) in enumerate(pickletools.genops(file)):
            if count > MAX_STEPS or place - begin > MAX_PICKLE:
                raise WeightsError(
                    f"its pickle has more than {MAX_STEPS:,} steps or {MAX_PICKLE >> 20} MB; no checkpoint has"
                )
            if opcode.name == "STOP":
                (result,) = self.stack
                return result
            if opcode.name in _VALUES:
                self.stack.append(_checked(argument))
            elif opcode.name in self.steps:
                self.steps[opcode.name](argument)
            else:
                raise WeightsError(pickled_objects(f"opcode {opcode.name}"))
        raise EOFError("the pickle has no end")

    def _take(self, count: int) -> list[Any]:
        if len(self.stack) < count or any(value is _MARK for value in self.stack[-count:]):
            raise ValueError("the pickle pops more than it has pushed")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _take_marked(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("the pickle has no mark")
        taken = self.stack[place + 1 :]
        del self.stack[place:]
        return taken

    # One method per opcode of `_STEPS`, with its name in `pickletools`.

    def _proto(self, _: Any) -> None:
        pass

    def _frame(self, _: Any) -> None:
        pass

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _put(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1]

    def _get(self, argument: int) -> None:
        self.stack.append(self.memo[argument])

    _binput = _long_binput = _put
    _binget = _long_binget = _get

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _none(self, _: Any) -> None:
        self.stack.append(None)

    def _newtrue(self, _: Any) -> None:
        self.stack.append(True)

    def _newfalse(self, _: Any) -> None:
        self.stack.append(False)

    def _empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def _empty_list(self, _: Any) -> None:
        self.stack.append([])

    def _empty_set(self, _: Any) -> None:
        self.stack.append(set())

    def _empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._take_marked()))

    def _tuple1(self, _: Any) -> None:
        self.stack.append(tuple(self._take(1)))

    def _tuple2(self, _: Any) -> None:
        self.stack.append(tuple(self._take(2)))

    def _tuple3(self, _: Any) -> None:
        self.stack.append(tuple(self._take(3)))

    def _list(self, _: Any) -> None:
        self.stack.append(self._take_marked())

    def _dict(self, _: Any) -> None:
        self.stack.append(_update({}, self._take_marked()))

    def _append(self, _: Any) -> None:
        self._extend(self._take(1))

    def _appends(self, _: Any) -> None:
        self._extend(self._take_marked())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target += values
        elif not isinstance(target, Skipped):
            raise ValueError("the pickle appends to something that is not a list")

    def _setitem(self, _: Any) -> None:
        _update(self.stack[-3], self._take(2))

    def _setitems(self, _: Any) -> None:
        values = self._take_marked()
        _update(self.stack[-1], values)

    def _additems(self, _: Any) -> None:
        values = self._take_marked()
        self.stack[-1].update(map(_key, values))

    def _global(self, argument: str) -> None:
        self._name(argument.replace(" ", ".", 1))

    def _stack_global(self, _: Any) -> None:
        self._name(".".join(map(str, self._take(2))))

    def _name(self, text: str) -> None:
        name = _Name(text.replace("__builtin__", "builtins"))
        if name.text in _OTHER_KINDS:
            raise WeightsError(f"it contains a tensor that is {_OTHER_KINDS[name.text]}; save plain, dense values")
        if not _is_known(name):
            if not self.skip_objects:
                raise WeightsError(pickled_objects(name.text))
            if name.text != _GETATTR:  # the call names the attribute
                self.skipped.add(name.text)
        dtype = getattr(torch, name.last, None) if name.text == f"torch.{name.last}" else None
        self.stack.append(dtype if isinstance(dtype, torch.dtype) else name)

    def _binpersid(self, _: Any) -> None:
        kind = self._take(1)[0]
        if not isinstance(kind, tuple) or len(kind) not in (5, 6) or kind[0] != "storage":
            raise ValueError("a tensor's data is not described in torch's format")
        _, storage, key, location, numel = kind[:5]
        if len(kind) == 6 and kind[5] is not None:
            raise WeightsError("it contains views of storages, as torch 0.3 saved them: save it with a newer torch")
        if not isinstance(storage, _Name) or not isinstance(key, str) or not isinstance(numel, int) or numel < 0:
            raise ValueError("a tensor's data is not described in torch's format")
        if location == "meta":
            raise WeightsError("it contains a tensor on the meta device, which has no values")
        self.stack.append(self.storage(storage.last.removesuffix("Storage"), key, numel))

    def _reduce(self, _: Any) -> None:
        name, arguments = self._take(2)
        if not isinstance(name, _Name | Skipped) or not isinstance(arguments, tuple):
            raise ValueError("the pickle calls something that is not a function")
        if isinstance(name, Skipped):
            self.skipped.add("a call of an object's return value")
        self.stack.append(Skipped() if isinstance(name, Skipped) else self._call(name, arguments))

    def _newobj(self, _: Any) -> None:
        name, _arguments = self._take(2)
        if not isinstance(name, _Name) or _is_known(name):
            raise ValueError("the pickle creates an object of something that is not a class")
        self.stack.append(Skipped())

    def _newobj_ex(self, _: Any) -> None:
        self.stack.append(self._take(1)[0])
        self._take(1)
        self.stack.append(())
        self._newobj(None)

    def _build(self, _: Any) -> None:
        # Attributes of a skipped object, or the `_metadata` of a state dict: neither is needed.
        target = self._take(2)[0]
        if not isinstance(target, Skipped | dict):
            raise ValueError("the pickle sets attributes of something that has none")
        self.stack.append(target)

    def _call(self, name: _Name, arguments: tuple) -> Any:
        """Return the result of one of the allowed functions."""
        if name.text == "collections.OrderedDict":
            return _update({}, [part for pair in _only(arguments, default=()) for part in pair])
        if name.text == "collections.Counter":
            return collections.Counter(_only(arguments, default={}))
        if name.text == "builtins.set":
            return set(map(_key, _only(arguments, default=())))
        if name.text == "builtins.bytearray":
            value = _only(arguments, default=b"")
            return bytearray(value if isinstance(value, bytes) else b"")
        if name.text == "builtins.complex":
            return complex(*arguments)
        if name.text == "_codecs.encode":  # how protocol 2 stores bytes
            text, encoding = arguments
            return text.encode("latin-1" if encoding in ("latin1", "latin-1") else "ascii")
        if name.text == "torch.Size":
            return torch.Size(_only(arguments))
        if name.text == "torch.device":
            return torch.device(*arguments)
        if name.text in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
            return _resolved(self._tensor(*arguments[:4]), arguments[6:7])
        if name.text == "torch._utils._rebuild_tensor_v3":
            return _resolved(self._tensor(*arguments[:4], dtype=arguments[6]), arguments[7:8])
        if name.text in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            if not isinstance(arguments[0], Tensor):
                raise ValueError("a parameter that is not a tensor")
            return arguments[0]
        if _is_known(name):
            raise ValueError(f"the pickle calls {name.text}")
        if name.text == _GETATTR:
            methods = isinstance(arguments[0], _Name) and not str(arguments[1]).startswith("_")
            self.skipped.add(f"{arguments[0].text}.{arguments[1]}" if methods else name.text)
        elif name.last == "_reconstruct" and arguments[1:2] != ((0,),):  # other shapes could be of any size
            self.skipped.add(f"{name.text} of shape {arguments[1:2]}")
        return Skipped()

    def _tensor(
        self, storage: Storage, offset: int, size: tuple, stride: tuple, dtype: torch.dtype | None = None
    ) -> Tensor:
        if not isinstance(storage, Storage):
            raise ValueError("a tensor without data")
        if not self.check_sizes:
            return torch.empty(0)
        dtype = dtype or storage.dtype or torch.uint8
        numbers = [offset, *size, *stride]
        if len(size) != len(stride) or len(size) > 64 or any(type(n) is not int or n < 0 for n in numbers):
            raise WeightsError(f"a tensor of shape {list(size)[:8]} with strides {list(stride)[:8]} is not valid")
        held = storage.data.numel() // dtype.itemsize
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if count and last >= held:
            raise WeightsError(
                f"a tensor of shape {list(size)[:8]} extends beyond its data: it is damaged, fetch it again"
            )
        if count > max(held, MAX_EXPANDED):
            raise WeightsError(
                f"a tensor of shape {list(size)[:8]} needs {count:,} values, but the file contains {held:,} of them "
                f"(an expanded tensor; at most {MAX_EXPANDED:,} are allowed): save tensor.contiguous()"
            )
        self.budget -= count * dtype.itemsize
        if self.budget < 0:
            raise WeightsError(f"its tensors expand to more than {MAX_COPIES} times its size: save each .contiguous()")
        values = storage.data[: held * dtype.itemsize].view(dtype)
        return torch.as_strided(values, size, stride, offset) if count else values.new_empty(size)


# The opcodes of `torch.save` in any of its protocols: first those whose argument is the value.
_VALUES = frozenset(
    [
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    ]
)
_STEPS = (
    *("PROTO", "FRAME", "MARK", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "MEMOIZE"),
    *("NONE", "NEWTRUE", "NEWFALSE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE", "TUPLE", "TUPLE1"),
    *("TUPLE2", "TUPLE3", "LIST", "DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "GLOBAL"),
    *("STACK_GLOBAL", "BINPERSID", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD"),
)
_KNOWN = frozenset(
    [
        *("collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.bytearray", "builtins.complex"),
        *("_codecs.encode", "torch.Size", "torch.device", "torch.storage.UntypedStorage", "torch.storage.TypedStorage"),
        *("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"),
        *("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state", "torch.UntypedStorage"),
        *(f"torch{place}.{name}Storage" for name in _DTYPES for place in ("", ".cuda")),
    ]
)


def _is_known(name: _Name) -> bool:
    return name.text in _KNOWN or (
        name.text == f"torch.{name.last}" and isinstance(getattr(torch, name.last, None), torch.dtype)
    )


def pickled_objects(what: str) -> str:
    """Return the error sentence for a pickle with more than plain types."""
    return (
        f"it is not a file of plain tensors: it contains pickled Python objects ({what}), and unpickling could run "
        "code. Nothing in it was executed. Ask for a published file or .safetensors"
    )


def _resolved(tensor: Tensor, bits: tuple) -> Tensor:
    """Apply the lazy negation and conjugation of a tensor, whose flags are in `bits` if they were saved."""
    put_off = bits[0] if bits and isinstance(bits[0], dict) else {}
    tensor = -tensor if put_off.get("neg") else tensor
    return tensor.conj().resolve_conj() if put_off.get("conj") else tensor


def _checked(value: Any) -> Any:
    """Return a plain value of a pickle after checking that it can be printed."""
    if type(value) is int and value.bit_length() > MAX_INTEGER:
        raise WeightsError(f"it contains an integer of {value.bit_length()} bits; at most {MAX_INTEGER} are allowed")
    return value


def _key(value: Any) -> Hashable:
    """Return a key of a dict or a member of a set: a scalar, which is cheap to hash."""
    scalars = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(part, str | int | float | bytes | None | Skipped) for part in scalars):
        raise WeightsError(f"it contains a dict with a key of type {type(value).__name__}, not text or numbers")
    return value


def _update(target: Any, pairs: list[Any]) -> Any:
    if len(pairs) % 2:
        raise ValueError("a key without a value")
    if isinstance(target, dict):
        for key, value in zip(pairs[::2], pairs[1::2]):
            target[_key(key)] = value
    elif not isinstance(target, Skipped):
        raise ValueError("the pickle sets items of something that is not a dict")
    return target


def _only(arguments: tuple, *, default: Any = None) -> Any:
    if len(arguments) > 1 or (not arguments and default is None):
        raise ValueError("a call with unexpected arguments")
    return arguments[0] if arguments else default

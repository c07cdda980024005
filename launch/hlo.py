"""Reads a compiled program's text: bytes to and from memory, and what the devices send each other.

Loops count as often as they run, which XLA's own cost analysis does not do. Bytes are those of one
device: each instruction reads its operands and writes its result once; slices and updates in place
count what they touch; what lies in a chip's own fast memory (space S(1) and above) counts nothing.
"""

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "opt-barrier", "optimization-barrier", "add-dependency"),
)
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "token": 0, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    attributes: str


class Traffic(NamedTuple):
    """Of one device."""

    memory: float  # bytes read and written
    received: dict[str, float]  # bytes from other devices, by kind of collective
    calls: dict[str, float]  # how often each kind runs


class Program:
    """The computations of a compiled module."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        current: list[Instruction] = []
        for line in text.splitlines():
            header = _HEADER.match(line)
            if header and " = " not in line.split("(")[0]:
                current = self.computations.setdefault(header.group(2), [])
                self.entry = header.group(2) if header.group(1) else self.entry
            elif " = " in line and line.startswith(" "):
                current.append(_instruction(line))
        self._named = {name: {i.name: i for i in body} for name, body in self.computations.items()}

    def traffic(self, unknown_trips: float) -> Traffic:
        """What one device moves.

        Args:
          unknown_trips: how often a loop runs whose count depends on data.
        """
        memory, counts = self._traffic(self.entry, unknown_trips, {})
        kinds = {kind for kind, _ in counts}
        received = {kind: counts[kind, "bytes"] for kind in kinds}
        return Traffic(memory, received, {kind: counts[kind, "calls"] for kind in kinds})

    def loops(self) -> list[int | None]:
        """Trip counts of all loops, None where it depends on data."""
        every = (i for body in self.computations.values() for i in body)
        return [self._trips(i) for i in every if i.op == "while"]

    def _trips(self, loop: Instruction) -> int | None:
        """As the loop says itself, or the constant that its counter, from 0 on, stays below."""
        said = _TRIPS.search(loop.attributes)
        if said:
            return int(said.group(1))
        condition = dict(_CALLED.findall(loop.attributes))["condition"]
        table, root = self._named[condition], self.computations[condition][-1]
        if root.op != "compare" or "direction=LT" not in root.attributes:
            return None
        limit = table[root.operands[1]]
        return int(limit.operands[0]) if limit.op == "constant" else None

    def _traffic(self, name: str, unknown: float, known: dict):
        if name in known:
            return known[name]
        memory, counts = 0.0, collections.Counter[tuple[str, str]]()

        def add(part, times=1.0):
            nonlocal memory
            memory += times * part[0]
            for key, value in part[1].items():
                counts[key] += times * value

        seen = set()

        def communicate(kind, where, i):
            # A collective that runs beside others is spread over fusions: same channel, one run.
            channel = re.search(r"channel_id=(\d+)", i.attributes)
            if channel and channel.group(1) in seen:
                return
            seen.add(channel.group(1) if channel else i.name)
            counts[kind, "bytes"] += _received(kind, i, self._named[where])
            counts[kind, "calls"] += 1

        for i in self.computations[name]:
            called = dict(_CALLED.findall(i.attributes))
            kind = i.op.removesuffix("-start")
            if kind in COLLECTIVES:
                communicate(kind, name, i)
                memory += self._moved(name, i)
            elif i.op == "while":
                trips = self._trips(i)
                times = unknown if trips is None else trips
                add(self._traffic(called["body"], unknown, known), times)
            elif i.op == "conditional":
                branches = [self._traffic(b, unknown, known) for b in _branches(i.attributes)]
                add(max(branches, key=lambda part: part[0]))
            elif i.op in ("call", "async-start"):
                inner = called.get("to_apply") or called["calls"]
                add(self._traffic(inner, unknown, known))
            elif i.op == "fusion":
                memory += self._moved(name, i)
                for kind, inner, part in self._fused_collectives(called["calls"]):
                    communicate(kind, inner, part)
            elif i.op not in _FREE and not i.op.endswith("-done"):
                memory += self._moved(name, i)
        known[name] = memory, counts
        return known[name]

    def _fused_collectives(self, name: str) -> Iterator[tuple[str, str, Instruction]]:
        """(kind, computation, instruction) of those inside of a fusion."""
        for i in self.computations[name]:
            if i.op.removesuffix("-start") in COLLECTIVES:
                yield i.op.removesuffix("-start"), name, i
            elif i.op == "fusion":
                yield from self._fused_collectives(dict(_CALLED.findall(i.attributes))["calls"])

    def _moved(self, name: str, i: Instruction) -> float:
        """Bytes that one instruction reads and writes."""
        table = self._named[name]
        if i.op == "dynamic-update-slice":
            update = table[i.operands[1]].type
            written = _size(update, everywhere=True) if _size(i.type) else 0.0
            return _size(update) + written
        if i.op in ("dynamic-slice", "slice", "gather"):
            source = table[i.operands[0]].type
            read = _size(i.type, everywhere=True) if _size(source) else 0.0
            return read + _size(i.type)
        if i.op == "slice-start":  # its type: operands, result, context
            part, source = _split(i.type[1:-1])[1], table[i.operands[0]].type
            return (_size(part, everywhere=True) if _size(source) else 0.0) + _size(part)
        if i.op == "copy-start":
            return _size(table[i.operands[0]].type) + _size(_first(i.type))
        if i.op == "fusion":
            inner = dict(_CALLED.findall(i.attributes))["calls"]
            reads = sum(
                min(_size(table[operand].type), self._read(inner, self._parameter(inner, n)))
                for n, operand in enumerate(i.operands)
                if operand in table
            )
            return reads + min(_size(i.type), self._written(inner, self.computations[inner][-1]))
        reads = sum(_size(table[operand].type) for operand in i.operands if operand in table)
        return reads + _size(i.type)

    def _parameter(self, name: str, number: int) -> Instruction:
        return next(
            i
            for i in self.computations[name]
            if i.op == "parameter" and i.operands == (str(number),)
        )

    def _read(self, name: str, value: Instruction) -> float:
        """Bytes of a value that the instructions of a fused computation read."""
        total = 0.0
        for user in self.computations[name]:
            for index, operand in enumerate(user.operands):
                if operand != value.name:
                    continue
                if user.op in ("dynamic-slice", "slice", "gather") and index == 0:
                    total += _size(user.type, everywhere=True)
                elif user.op == "dynamic-update-slice" and index == 0:
                    continue
                elif user.op == "bitcast":
                    total += self._read(name, user)
                elif user.op == "fusion":
                    inner = dict(_CALLED.findall(user.attributes))["calls"]
                    if {i.op for i in self.computations[inner]} <= {"parameter", "bitcast"}:
                        total += self._read(name, user)  # the value itself, seen otherwise
                    else:
                        total += self._read(inner, self._parameter(inner, index))
                else:
                    return _size(value.type, everywhere=True)
        return total

    def _written(self, name: str, root: Instruction) -> float:
        """Bytes of a fused computation's result that are written."""
        table = self._named[name]
        if root.op == "tuple":
            return sum(self._written(name, table[operand]) for operand in root.operands)
        if root.op == "bitcast":
            return self._written(name, table[root.operands[0]])
        if root.op == "dynamic-update-slice":
            return _size(table[root.operands[1]].type, everywhere=True)
        if root.op == "fusion":
            inner = dict(_CALLED.findall(root.attributes))["calls"]
            return self._written(inner, self.computations[inner][-1])
        return _size(root.type, everywhere=True)


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    rest = re.sub(r"/\*.*?\*/", "", rest)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    op, _, _ = rest.partition("(")
    close = _closing(rest, len(op))
    inside = rest[len(op) + 1 : close]
    operands = tuple(part.split()[-1].lstrip("%") for part in _split(inside) if part.strip())
    return Instruction(name.lstrip("%"), type_, op, operands, rest[close + 1 :])


def _closing(text: str, begin: int) -> int:
    """Where the bracket that opens at `begin` closes."""
    depth = 0
    for index in range(begin, len(text)):
        depth += (text[index] in "({[") - (text[index] in ")}]")
        if depth == 0:
            return index
    return len(text) - 1


def _split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "({[") - (letter in ")}]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _size(type_: str, everywhere: bool = False) -> float:
    """Bytes of a type that lie in the main memory, or in any."""
    total = 0.0
    for dtype, dims, layout in _SHAPE.findall(type_):
        if not everywhere and "S(" in layout:
            continue
        width = _BYTES.get(dtype)
        if width is None:
            bits = re.search(r"\d+", dtype)
            width = int(bits.group()) / 8 if bits else 0
        for n in filter(None, dims.split(",")):
            width *= int(n)
        total += width
    return total


def _first(type_: str) -> str:
    """The first part of a tuple's type."""
    return _split(type_[1:-1])[0] if type_.startswith("(") else type_


def _received(kind: str, i: Instruction, table: dict[str, Instruction]) -> float:
    """Bytes that a device gets from the others in one run, by the best algorithm."""
    group = _group_size(i.attributes)
    sent = sum(_size(table[o].type, everywhere=True) for o in i.operands if o in table)
    others = (group - 1) / group
    if kind == "all-gather":
        return sent * (group - 1)
    if kind == "all-reduce":
        return 2 * sent * others
    return sent if kind == "collective-permute" else sent * others


def _group_size(attributes: str) -> int:
    """Devices that take part in one collective, from any of the three spellings."""
    named = re.search(r"replica_groups=\w+\[([^\]]*)\] \{([^}]*)\}", attributes)
    if named:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named.group(1)))
        size = 1
        for axis in re.findall(r"'([^']+)'", named.group(2)):
            size *= int(sizes.get(axis, 1))
        return size
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes)
    if counted:
        return int(counted.group(1))
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    return len(listed.group(1).split(",")) if listed else 1


def _branches(attributes: str) -> list[str]:
    names: list[str] = []
    for several, one in _BRANCHES.findall(attributes):
        names += [n.strip().lstrip("%") for n in several.split(",")] if several else [one]
    return names

"""Reads a compiled program's text: kernels, bytes to and from memory, what devices send each other.

Loops count as often as they run, which XLA's own cost analysis does not do. Bytes are those of one
device: each instruction reads its operands and writes its result once; slices and updates in place
count what they touch; what lies in a chip's own fast memory (space S(1) and above) counts nothing.
"""

import collections
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

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
# What no loop can do once for all of its turns.
_NEVER_SAME = ("while", "conditional", "call", "infeed", "outfeed", "send", "recv", "rng")
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "token": 0, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\](\{[^}]*\})?")
_LAYOUT = re.compile(r"\{[^}]*\}")
_NUMBER = re.compile(r"(\.(\d+|clone))+$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')

Counts = collections.Counter[str | tuple[str, str]]
Trips = float | tuple[float, ...]


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    attributes: str


class Traffic(NamedTuple):
    """Of one device."""

    kernels: float  # operations that run, one after the other: a GPU launches a kernel for each
    memory: float  # bytes read and written
    received: dict[str, float]  # bytes from other devices, by kind of collective
    calls: dict[str, float]  # how often each kind runs


class Loop(NamedTuple):
    """A while loop."""

    trips: int | None  # None: they depend on data
    innermost: bool  # of those whose count depends on data
    turn: Traffic  # of one turn
    again: dict[str, float]  # bytes a turn of what is made of nothing that changes, by operation


def times_of(trips: tuple[Trips, ...], number: int) -> float:
    """How often a loop runs, of those at one depth whose count depends on data."""
    if not trips or not isinstance(trips[0], tuple):
        return trips[0] if trips else 0.0
    return trips[0][number] if number < len(trips[0]) else 0.0


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

    def traffic(self, *trips: Trips) -> Traffic:
        """What one device does.

        Args:
          trips: of the loops whose count depends on data, the outermost first: of all of them, or
            of each of a computation in their order, others never.
        """
        return _traffic_of(self._counts(self.entry, trips, {}))

    def loops(self) -> list[Loop]:
        """All loops, of which a turn leaves out those inside whose count depends on data."""
        found, known = [], {}
        for i in (i for body in self.computations.values() for i in body if i.op == "while"):
            body = dict(_CALLED.findall(i.attributes))["body"]
            turn = _traffic_of(self._counts(body, (), known))
            found.append(Loop(self._trips(i), self._innermost(body), turn, self._again(body)))
        return found

    def _innermost(self, body: str) -> bool:
        inside = [i for i in self.computations[body] if i.op == "while"]
        return all(
            self._trips(i) is not None
            and self._innermost(dict(_CALLED.findall(i.attributes))["body"])
            for i in inside
        )

    def _again(self, body: str) -> dict[str, float]:
        """Bytes of the operations of a loop's body that would give the same before the loop."""
        table, root = self._named[body], self.computations[body][-1]
        carried = self._parameter(body, 0).name

        def passed_on(i: Instruction) -> bool:
            index = re.search(r"index=(\d+)", i.attributes)
            if i.op != "get-tuple-element" or i.operands != (carried,) or index is None:
                return False
            return root.op == "tuple" and root.operands[int(index.group(1))] == i.name

        found: dict[str, float] = collections.defaultdict(float)
        same: set[str] = set()
        for i in table.values():
            if i.op in ("constant", "iota", "partition-id", "replica-id") or passed_on(i):
                same.add(i.name)
            elif i.op not in _NEVER_SAME and i.operands and same.issuperset(i.operands):
                same.add(i.name)
                # A copy or slice that is started is fetched ahead into fast memory.
                if i.op not in _FREE and not i.op.endswith(("-start", "-done")):
                    what = f"{_NUMBER.sub('', i.name)} {_LAYOUT.sub('', i.type)}"
                    found[what] += self._moved(body, i)
        return {name: moved for name, moved in found.items() if moved}

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

    def _counts(self, name: str, trips: tuple[Trips, ...], known: dict[Any, Counts]) -> Counts:
        """Of a computation: "kernels", "memory", and (kind, "bytes" or "calls") of collectives."""
        if (name, trips) in known:
            return known[name, trips]
        counts: Counts = collections.Counter()
        seen, depending = set(), 0

        def add(part: Counts, times: float = 1.0) -> None:
            for key, value in part.items():
                counts[key] += times * value

        def communicate(kind: str, where: str, i: Instruction) -> None:
            # A collective that runs beside others is spread over fusions: one channel, one run.
            # Fusions of several collectives all have channel 1.
            channel = re.search(r"channel_id=(\d+)", i.attributes)
            run = (channel.group(1), _LAYOUT.sub("", i.type)) if channel else i.name
            if run in seen:
                return
            seen.add(run)
            counts[kind, "bytes"] += _received(kind, i, self._named[where])
            counts[kind, "calls"] += 1

        for i in self.computations[name]:
            called = dict(_CALLED.findall(i.attributes))
            kind = i.op.removesuffix("-start")
            if i.op == "while":
                times, inner = self._trips(i), trips
                if times is None:
                    times, inner = times_of(trips, depending), trips[1:]
                    depending += 1
                add(self._counts(called["body"], inner, known), times)
            elif i.op == "conditional":
                branches = [self._counts(b, trips, known) for b in _branches(i.attributes)]
                add(max(branches, key=lambda part: part["memory"]))
            elif i.op in ("call", "async-start"):
                add(self._counts(called.get("to_apply") or called["calls"], trips, known))
            elif i.op not in _FREE and not i.op.endswith("-done"):
                counts["memory"] += self._moved(name, i)
                counts["kernels"] += 1
                if kind in COLLECTIVES:
                    communicate(kind, name, i)
                elif i.op == "fusion":
                    for kind, inner, part in self._fused_collectives(called["calls"]):
                        communicate(kind, inner, part)
        known[name, trips] = counts
        return counts

    def _fused_collectives(self, name: str) -> Iterator[tuple[str, str, Instruction]]:
        """(kind, computation, instruction) of those inside of a fusion."""
        for i in self.computations[name]:
            kind = i.op.removesuffix("-start")
            if kind in COLLECTIVES:
                cut = kind == "all-reduce" and self._only_cut(name, i)
                yield "reduce-scatter" if cut else kind, name, i
            elif i.op == "fusion":
                yield from self._fused_collectives(dict(_CALLED.findall(i.attributes))["calls"])

    def _only_cut(self, name: str, value: Instruction) -> bool:
        """Whether nothing but slices of a value are used: the TPU's form of a reduce-scatter."""
        users = [i for i in self.computations[name] if value.name in i.operands]
        return bool(users) and all(
            i.op == "dynamic-slice" or (i.op == "get-tuple-element" and self._only_cut(name, i))
            for i in users
        )

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
        return reads + _size(i.type) - _in_place(i, table)

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


def _traffic_of(counts: Counts) -> Traffic:
    kinds = {key[0] for key in counts if isinstance(key, tuple)}
    received = {kind: counts[kind, "bytes"] for kind in kinds}
    calls = {kind: counts[kind, "calls"] for kind in kinds}
    return Traffic(counts["kernels"], counts["memory"], received, calls)


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


def _in_place(i: Instruction, table: dict[str, Instruction]) -> float:
    """Bytes of a kernel's results that are operands of it, in which it changes a part."""
    aliases = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", i.attributes)
    operands = re.findall(r": \((\d+),", aliases.group(1)) if aliases else ()
    return sum(_size(table[i.operands[int(number)]].type) for number in operands)


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

# SPDX-License-Identifier: Apache-2.0
"""The text of a compiled program, read: operations, and how often each runs.

`compiled.as_text()` is the only place where XLA:TPU says what it expects of
each operation. A computation is a list of operations; loops, calls and branches
name further ones.
"""

from collections.abc import Iterator
import math
import re
from typing import NamedTuple

HEAD = re.compile(
  r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$|(ENTRY )?%?([\w.\-]+) \{$"
)
NAME = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = ")
CODE = re.compile(r" ([a-z][\w\-]*)\(")
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=\s]*)\]")
CALLED = re.compile(
  r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)|"
  r"branch_computations=\{([^}]*)\}"
)
# Bytes of an element; what is not here, as a token, has none.
BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "token": 0}


class Operation(NamedTuple):
  """A line of a program.

  Attributes:
    name: in the program.
    code: "fusion", "while", "all-reduce"…
    result: the text of its type.
    operands: names.
    rest: all that stands behind them.
    root: whether it is what its computation gives.
  """

  name: str
  code: str
  result: str
  operands: tuple[str, ...]
  rest: str
  root: bool = False

  @property
  def scope(self) -> str:
    """Where in the model it comes from: "jit(f)/jvp(up_1)/resnet/mul"."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ""

  @property
  def frame(self) -> int:
    """The number of the place in Python that it comes from; 0 for none."""
    found = re.search(r"stack_frame_id=(\d+)", self.rest)
    return int(found[1]) if found else 0

  @property
  def cycles(self) -> int | None:
    """The compiler's own estimate of one run, where it has one."""
    found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
    # What cannot be estimated has the largest number there is.
    return int(found[1]) if found and int(found[1]) < 2**62 else None

  def calls(self) -> tuple[str, ...]:
    """The computations that it names."""
    found = []
    for one, several in CALLED.findall(self.rest):
      found += [one] if one else re.findall(r"[\w.\-]+", several)
    return tuple(found)


class Program(NamedTuple):
  """A compiled program.

  Attributes:
    computations: operations of each, in the order of the text.
    entry: the name of the first.
    frames: the functions that a number of `Operation.frame` stands for, the
      innermost first.
  """

  computations: dict[str, tuple[Operation, ...]]
  entry: str
  frames: dict[int, tuple[str, ...]]


def parse(text: str) -> Program:
  """Reads `compiled.as_text()`.

  Raises:
    ValueError: no program in it.
  """
  found: dict[str, list[Operation]] = {}
  inside, entry = "", ""
  for line in _lines(text):
    head = HEAD.match(line)
    if head and not line.startswith(" "):
      inside = head[2] or head[4]
      found[inside] = []
      if head[1] or head[3]:
        entry = inside
    elif inside and (operation := _operation(line)):
      found[inside].append(operation)
  if not entry:
    raise ValueError("no ENTRY in this text; expected compiled.as_text()")
  made = {name: tuple(operations) for name, operations in found.items()}
  return Program(made, entry, _frames(text))


def _lines(text: str) -> Iterator[str]:
  """Lines, with those joined that a kernel's metadata breaks."""
  held: list[str] = []
  for line in text.splitlines():
    fresh = NAME.match(line) or HEAD.match(line) or line.rstrip() == "}"
    if fresh or not line.strip():
      if held:
        yield "".join(held)
      held = [line]
    else:
      held.append(line)
  yield "".join(held)


def _operation(line: str) -> Operation | None:
  head = NAME.match(line)
  if not head:
    return None
  # The first code behind the type; a type has brackets, and no such word.
  code = CODE.search(line, head.end() - 1)
  if not code:
    return None
  result = line[head.end() : code.start()]
  inner = line[code.end() :]
  end = _close(inner)
  operands = tuple(re.findall(r"%([\w.\-]+)", inner[:end]))
  if code[1] in ("constant", "parameter"):
    operands = (inner[:end],)
  return Operation(
    head[2], code[1], result, operands, inner[end + 1 :], bool(head[1])
  )


def _close(text: str) -> int:
  """Where the bracket closes that is open before a text."""
  depth = 1
  for place, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if not depth:
      return place
  return len(text)


def _frames(text: str) -> dict[int, tuple[str, ...]]:
  """The tables of Python's stack that stand before the first computation."""
  table = lambda name: re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.M)
  if not (functions := table("FunctionNames")):
    return {}
  names = dict(re.findall(r"^(\d+) \"(.*)\"$", functions[1], re.M))
  places, frames = table("FileLocations"), table("StackFrames")
  if not places or not frames:
    return {}
  function = {
    place: names.get(number, "")
    for place, number in re.findall(
      r"^(\d+) \{.*?function_name_id=(\d+)", places[1], re.M
    )
  }
  above = re.findall(
    r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?",
    frames[1],
    re.M,
  )
  # Numbers of parents are one too high: the first frame names itself.
  shift = 1 if above and above[0][0] == above[0][2] else 0
  made: dict[int, tuple[str, ...]] = {}
  for number, place, parent in above:
    outer = made.get(int(parent or 0) - shift, ())
    made[int(number)] = (function.get(place, ""), *outer)
  return made


def arrays(result: str) -> list[tuple[str, tuple[int, ...]]]:
  """Types and shapes in the text of a type.

  >>> arrays("(f32[2,3]{1,0:T(8,128)}, pred[])")
  [('f32', (2, 3)), ('pred', ())]
  """
  # What braces hold is layout.
  plain = re.sub(r"\{[^{}]*\}", "", re.sub(r"/\*.*?\*/", "", result))
  return [
    (kind, tuple(int(n.strip("<= ")) for n in shape.split(",") if n.strip()))
    for kind, shape in ARRAY.findall(plain)
  ]


def size(result: str) -> int:
  """Bytes of what a type describes, without padding.

  >>> size("(f32[2,3]{1,0}, bf16[4])")
  32
  """
  total = 0
  for kind, shape in arrays(result):
    digits = re.search(r"\d+", kind)
    bits = BITS.get(kind, int(digits[0]) if digits else 0)
    total += bits * math.prod(shape)
  return total // 8


class Run(NamedTuple):
  """An operation, and how often a run of the program runs it.

  Attributes:
    operation: the operation.
    times: loops counted.
    inside: the computation it stands in.
  """

  operation: Operation
  times: int
  inside: str


def runs(program: Program, unknown: int = 1) -> Iterator[Run]:
  """All operations that run, with loops counted and branches all taken.

  What is inside a fusion is not gone into: it is one operation.

  Args:
    program: from `parse`.
    unknown: how often a loop runs whose length the text does not say.
  """

  def walk(name: str, times: int) -> Iterator[Run]:
    for operation in program.computations.get(name, ()):
      yield Run(operation, times, name)
      if operation.code == "while":
        again = trips(program, operation, name)
        body = re.search(r"body=%?([\w.\-]+)", operation.rest)
        if body:
          yield from walk(
            body[1], times * (unknown if again is None else again)
          )
      elif operation.code in ("call", "conditional", "async-start"):
        for called in operation.calls():
          yield from walk(called, times)

  yield from walk(program.entry, 1)


def trips(program: Program, loop: Operation, inside: str) -> int | None:
  """How often a loop runs: as it says, or as its condition does.

  None for one whose end depends on what it computes; the bound that such a
  condition also has, `i < n and ...`, counts.
  """
  known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
  if known:
    return int(known[1])
  condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
  bound = _bound(program, condition[1]) if condition else None
  if bound is None:
    return None
  index, end = bound
  start = _element(program, inside, loop, index)
  return max(end - (start or 0), 0)


def _bound(program: Program, name: str) -> tuple[int, int] | None:
  """(element of the state, end) of the one comparison with a constant."""
  operations = {one.name: one for one in program.computations.get(name, ())}
  for one in operations.values():
    inner, given = one, operations
    arguments = [operations.get(operand) for operand in one.operands]
    if one.code == "fusion":
      called = program.computations.get(one.calls()[0], ())
      compares = [c for c in called if c.code == "compare"]
      given = {c.name: c for c in called}
      if len(compares) != 1:
        continue
      inner = compares[0]
      sides = [given.get(operand) for operand in inner.operands]
      arguments = [
        arguments[int(side.operands[0])]
        if side is not None and side.code == "parameter"
        else side
        for side in sides
      ]
    if inner.code != "compare" or len(arguments) != 2:
      continue
    direction = re.search(r"direction=(\w+)", inner.rest)
    index = [_index(a) for a in arguments]
    constant = [_constant(a) for a in arguments]
    if direction and direction[1] == "LT":
      if index[0] is not None and constant[1] is not None:
        return index[0], constant[1]
    if direction and direction[1] == "GT":
      if index[1] is not None and constant[0] is not None:
        return index[1], constant[0]
  return None


def _index(operation: Operation | None) -> int | None:
  if operation is None or operation.code != "get-tuple-element":
    return None
  found = re.search(r"index=(\d+)", operation.rest)
  return int(found[1]) if found else None


def _constant(operation: Operation | None) -> int | None:
  if operation is None or operation.code != "constant":
    return None
  text = operation.operands[0]
  return int(text) if re.fullmatch(r"-?\d+", text) else None


def _element(
  program: Program, inside: str, loop: Operation, index: int
) -> int | None:
  """The constant that an element of a loop's state begins with."""
  operations = {one.name: one for one in program.computations[inside]}
  state = operations.get(loop.operands[0])
  if state is None or state.code != "tuple" or index >= len(state.operands):
    return None
  first = operations.get(state.operands[index])
  while first is not None and first.code in ("copy", "bitcast", "convert"):
    first = operations.get(first.operands[0])
  return _constant(first)

"""An ONNX graph under construction: nodes, constants, and other graphs taken in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from engine.errors import ExportError


@dataclass
class Sheet:
    """Nodes and constants of one graph; `op` returns the name of the node's result.

    prefix: of the names of constants and weights, so that a loop's body does not shadow those of the graph around it.
    """

    prefix: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    names: set[str] = field(default_factory=set)  # of the constants

    def op(self, kind: str, *inputs: str, out: str, **attributes: Any) -> str:
        """Append one node whose result is called `out`."""
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"{out}:{kind}", **attributes))
        return out

    def split(self, source: str, names: Sequence[str], axis: int = 0) -> list[str]:
        """An array cut along an axis into parts of one."""
        node = helper.make_node("Split", [source], list(names), name=f"{source}:Split", axis=axis, num_outputs=len(names))
        self.nodes.append(node)
        return list(names)

    def constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        """A constant under this name, with the prefix; the same name twice is the same constant."""
        name = self.prefix + name
        if name not in self.names:
            self.names.add(name)
            self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def axes(self, *numbers: int) -> str:
        """A list of axes, or any other list of whole numbers."""
        return self.constant("numbers/" + "_".join(map(str, numbers)), list(numbers))

    def sum(self, terms: Iterable[tuple[str, str]], out: str, *more: str) -> str:
        """k_1 a_1 + k_2 a_2 + ... + more, added from left to right as row.h does."""
        parts = [self.op("Mul", k, a, out=f"{out}/{k.rpartition('/')[2]}") for k, a in terms]
        parts += more
        if len(parts) == 1:
            return self.op("Identity", parts[0], out=out)
        total = parts[0]
        for count, part in enumerate(parts[1:], 2):
            total = self.op("Add", total, part, out=out if count == len(parts) else f"{out}/sum{count}")
        return total

    def inline(self, model: onnx.ModelProto, graph: str, call: str, names: Mapping[str, str]) -> None:
        """Append a model's nodes and weights; its inputs and outputs get the names given, all else a prefix.

        graph: prefix of its weights, which two calls of one graph share; call: prefix of everything else.
        """
        weights = {tensor.name for tensor in model.graph.initializer}

        def renamed(name: str) -> str:
            return names.get(name, f"{self.prefix + graph if name in weights else call}/{name}") if name else ""

        for tensor in model.graph.initializer:
            if renamed(tensor.name) in self.names:
                continue
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = renamed(tensor.name)
            self.names.add(copy.name)
            self.constants.append(copy)
        for node in model.graph.node:
            if any(attribute.HasField("g") for attribute in node.attribute):
                raise ExportError(
                    f"graph {graph}: found the node {node.op_type} {node.name!r}, which holds a graph of its own, expected "
                    "plain nodes: the whole sampler cannot take it in; build without --whole-sampler"
                )
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.name = f"{call}/{node.name}" if node.name else ""  # two empty names stay no names
            copied.input[:] = [renamed(name) for name in node.input]
            copied.output[:] = [renamed(name) for name in node.output]
            self.nodes.append(copied)

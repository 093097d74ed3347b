"""The weights of a feed-forward layer, neuron by neuron: what there is to cut when neurons go.

A neuron has a row of W_in, one of W_gate where the MLP is gated, an entry in the bias of each, and a column of W_out.
Which way round a matrix lies is its module's affair: [out in] in an `nn.Linear`, [in out] in GPT-2's Conv1D and in a
`HookedTransformer`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from transformers.pytorch_utils import Conv1D

from sp_lens.errors import SpLensError
from sp_lens.models.hooks import kind_of
from sp_lens.neurons.layout import NeuronGroup

# The attributes in which a module keeps its sizes: of what comes in, and of what goes out.
_SIZES: dict[type, tuple[str, str]] = {torch.nn.Linear: ("in_features", "out_features"), Conv1D: ("nx", "nf")}


@dataclass(frozen=True)
class Sliced:
    """A parameter with a slice for each neuron.

    Attributes:
        owner: the module whose parameter it is.
        name: what it is called there.
        axis: along which the neurons are.
        size: the attribute in which the module keeps their number, "" where it keeps none.
    """

    owner: torch.nn.Module
    name: str
    axis: int
    size: str = ""

    @property
    def parameter(self) -> torch.nn.Parameter:
        """The one that is there now."""
        return self.owner.get_parameter(self.name)

    def put(self, parameter: torch.nn.Parameter) -> None:
        """Put another in its place, of any number of neurons.

        Not by `.data`: a graph that is still alive would hold gradients to the old shape.
        """
        setattr(self.owner, self.name, parameter)
        if self.size:
            setattr(self.owner, self.size, parameter.shape[self.axis])

    def put_tensor(self, tensor: torch.Tensor) -> None:
        """Put a parameter of these values in its place."""
        self.put(torch.nn.Parameter(tensor, requires_grad=self.parameter.requires_grad))


class Joined(NamedTuple):
    """A parameter that holds several others, which are views of it.

    Phi-3 has gate and up in one matrix, and TransformerLens computes with its two halves.
    """

    whole: Sliced
    parts: tuple[Sliced, ...]


@dataclass(frozen=True)
class Matrices:
    """The parameters that the neurons of a feed-forward group are in.

    Attributes:
        group: the neurons.
        inputs: W_in, W_gate and their biases.
        output: W_out.
        joined: what holds several of the inputs in one.
    """

    group: NeuronGroup
    inputs: tuple[Sliced, ...]
    output: Sliced
    joined: tuple[Joined, ...] = ()

    def __iter__(self) -> Iterator[Sliced]:
        return iter((*self.inputs, self.output))


@dataclass(frozen=True)
class Cut:
    """A layer that is to lose neurons.

    Attributes:
        matrices: the weights.
        marked: True on what goes.
        width: how many neurons there will be; where fewer are left, zeroed ones fill up.
    """

    matrices: Matrices
    marked: Bool[torch.Tensor, " neuron"]
    width: int

    @property
    def left(self) -> Int[torch.Tensor, " left"]:
        """The neurons that stay, in their order."""
        return (~self.marked).nonzero().squeeze(1)

    @property
    def gone(self) -> Int[torch.Tensor, " gone"]:
        """The neurons that go, the first of them to fill up."""
        return self.marked.nonzero().squeeze(1)

    def apply(self) -> None:
        """For good: narrower tensors in place of the parameters' own."""
        matrices = self.matrices
        neurons = torch.cat([self.left, self.gone])[: self.width]
        for sliced in matrices:
            whole = sliced.parameter.data
            sliced.put_tensor(whole.index_select(sliced.axis, neurons.to(whole.device)))
        self.filling(matrices.output.parameter.data).zero_()
        for whole, parts in matrices.joined:
            whole.put_tensor(torch.cat([part.parameter.data for part in parts], dim=whole.axis))
            for part, half in zip(parts, whole.parameter.data.chunk(len(parts), dim=whole.axis), strict=True):
                part.put_tensor(half)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """For the length of a `with`: views of the tensors, in whose front neurons that stay replace those that go.

        What is written over is kept, at most a quarter of it, and written back whatever happens.
        """
        early, late = self._moves()
        before = [(sliced, sliced.parameter) for sliced in self.matrices]
        over = [whole.data.index_select(sliced.axis, early.to(whole.device)) for sliced, whole in before]
        filling = self.filling(self.matrices.output.parameter.data)
        filled = filling.clone()
        try:
            for sliced, whole in before:
                moved = whole.data.index_select(sliced.axis, late.to(whole.device))
                whole.data.index_copy_(sliced.axis, early.to(whole.device), moved)
            filling.zero_()
            for sliced, whole in before:
                sliced.put_tensor(whole.data.narrow(sliced.axis, 0, self.width))
            yield
        finally:
            filling.copy_(filled)
            for (sliced, whole), slices in zip(before, over, strict=True):
                whole.data.index_copy_(sliced.axis, early.to(whole.device), slices)
                sliced.put(whole)

    def filling(self, output: torch.Tensor) -> torch.Tensor:
        """The slices of the output weights, in the order of `left` and then others, that are to be zero."""
        return output.narrow(self.matrices.output.axis, len(self.left), self.width - len(self.left))

    @property
    def first(self) -> Int[torch.Tensor, " left"]:
        """The neurons that stay in the order in which `in_force` puts them first: as few as possible move."""
        early, late = self._moves()
        order = torch.arange(len(self.left))
        order[early] = late
        return order

    def _moves(self) -> tuple[Int[torch.Tensor, " move"], Int[torch.Tensor, " move"]]:
        """Neurons that go from among the first, and as many that stay from behind them, which take their places."""
        count = len(self.left)
        return self.gone[self.gone < count], self.left[self.left >= count]


def matrices_of(model: Any, groups: Iterable[NeuronGroup]) -> list[Matrices]:
    """The parameters of each `mlp` group.

    Raises:
        SpLensError: for weights that can't be cut: quantised, on disk, of a module that is neither an
            `nn.Linear` nor a Conv1D, or shared by several layers.
    """
    found = [_matrices(model, group) for group in groups]
    uses = Counter(id(sliced.parameter) for matrices in found for sliced in matrices)
    for matrices in found:
        if any(uses[id(sliced.parameter)] > 1 for sliced in matrices):
            raise _refusal(model, matrices.group, "are shared with another layer")
    return found


def _matrices(model: Any, group: NeuronGroup) -> Matrices:
    mlp = model.blocks[group.layer].mlp
    component = getattr(mlp, "original_component", None)
    found = _of_hooked(group, mlp) if component is None else _of_bridge(model, group, mlp)
    for sliced in found:
        # A packed format is a class of its own; what is on disk is on "meta".
        plain = type(sliced.parameter) is torch.nn.Parameter and not sliced.parameter.is_meta
        if not plain or sliced.parameter.shape[sliced.axis] != group.width:
            raise _refusal(model, group, "are quantised or offloaded to disk")
    return found if component is None else replace(found, joined=tuple(_joined(component, found.inputs)))


def _of_hooked(group: NeuronGroup, mlp: Any) -> Matrices:
    axes = {"W_in": 1, "W_gate": 1, "b_in": 0}
    inputs = [Sliced(mlp, name, axis) for name, axis in axes.items() if name in mlp._parameters]
    return Matrices(group, tuple(inputs), Sliced(mlp, "W_out", 0))


def _of_bridge(model: Any, group: NeuronGroup, mlp: Any) -> Matrices:
    modules = [getattr(mlp, name).original_component for name in ("in", "gate", "out") if hasattr(mlp, name)]
    for module in modules:
        if type(module) not in _SIZES or module._parameters.get("weight") is None:
            raise _refusal(model, group, f"are in a {type(module).__name__}")
    *projections, out = modules
    inputs = tuple(sliced for module in projections for sliced in _outward(module))
    # The input of the output projection; its bias is no neuron's.
    output = Sliced(out, "weight", 1 if type(out) is torch.nn.Linear else 0, _SIZES[type(out)][0])
    return Matrices(group, inputs, output)


def _outward(module: Any) -> Iterator[Sliced]:
    """Weight and bias by what goes out of the module."""
    size = _SIZES[type(module)][1]
    yield Sliced(module, "weight", 0 if type(module) is torch.nn.Linear else 1, size)
    if module.bias is not None:
        yield Sliced(module, "bias", 0, size)


def _joined(component: torch.nn.Module, inputs: Sequence[Sliced]) -> Iterator[Joined]:
    """The parameters of the transformers module in whose memory several of the inputs lie."""
    for module in component.modules():
        for whole in _outward(module) if type(module) in _SIZES else ():
            if type(whole.parameter) is not torch.nn.Parameter:
                continue
            first = whole.parameter.data_ptr()
            last = first + whole.parameter.nbytes
            parts = [sliced for sliced in inputs if first <= sliced.parameter.data_ptr() < last]
            if len(parts) > 1:
                yield Joined(whole, tuple(sorted(parts, key=lambda part: part.parameter.data_ptr())))


def _refusal(model: Any, group: NeuronGroup, what: str) -> SpLensError:
    return SpLensError(
        f"the weights behind {group.name} of {kind_of(model)} {what}: neurons can't be taken out of them. Ablation by "
        "hooks works (ablate, prune); to compact, load the model in float16 or bfloat16."
    )

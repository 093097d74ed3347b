"""Access the weights of a feed-forward layer by neuron, and remove neurons from them.

A neuron has a row of W_in, a row of W_gate if the MLP is gated, an entry in the bias of each, and a column of W_out.
The orientation of a matrix depends on its module: [out in] in an `nn.Linear`, [in out] in GPT-2's Conv1D and in a
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

# The attributes in which a module stores the sizes of its input and output.
_SIZES: dict[type, tuple[str, str]] = {torch.nn.Linear: ("in_features", "out_features"), Conv1D: ("nx", "nf")}


@dataclass(frozen=True)
class Sliced:
    """A parameter that has one slice per neuron.

    Attributes:
        owner: Module that the parameter belongs to.
        name: Name of the parameter in the module.
        axis: Axis of the neurons.
        size: Attribute in which the module stores the number of neurons, or "" if there is none.
    """

    owner: torch.nn.Module
    name: str
    axis: int
    size: str = ""

    @property
    def parameter(self) -> torch.nn.Parameter:
        """The current parameter."""
        return self.owner.get_parameter(self.name)

    def put(self, parameter: torch.nn.Parameter) -> None:
        """Replace the parameter by one with any number of neurons.

        Assigning to `.data` instead would fail if an existing autograd graph expects gradients of the old shape.
        """
        setattr(self.owner, self.name, parameter)
        if self.size:
            setattr(self.owner, self.size, parameter.shape[self.axis])

    def put_tensor(self, tensor: torch.Tensor) -> None:
        """Replace the parameter by a new one with the values of a tensor."""
        self.put(torch.nn.Parameter(tensor, requires_grad=self.parameter.requires_grad))


class Joined(NamedTuple):
    """A parameter that contains several others as views.

    Phi-3 has the gate and up projections in one matrix, and TransformerLens computes with its two halves.
    """

    whole: Sliced
    parts: tuple[Sliced, ...]


@dataclass(frozen=True)
class Matrices:
    """The parameters of the neurons of a feed-forward layer.

    Attributes:
        group: Neuron group of the layer.
        inputs: W_in, W_gate and their biases.
        output: W_out.
        joined: Parameters that contain several of the inputs.
    """

    group: NeuronGroup
    inputs: tuple[Sliced, ...]
    output: Sliced
    joined: tuple[Joined, ...] = ()

    def __iter__(self) -> Iterator[Sliced]:
        return iter((*self.inputs, self.output))


@dataclass(frozen=True)
class Cut:
    """The removal of neurons from a layer.

    Attributes:
        matrices: Weights of the layer.
        marked: Mask of the neurons to remove.
        width: Number of neurons afterwards. If fewer neurons are kept, removed neurons with zero output weights pad the
            layer to this width.
    """

    matrices: Matrices
    marked: Bool[torch.Tensor, " neuron"]
    width: int

    @property
    def kept(self) -> Int[torch.Tensor, " kept"]:
        """The indices of the kept neurons, in ascending order."""
        return (~self.marked).nonzero().squeeze(1)

    @property
    def removed(self) -> Int[torch.Tensor, " removed"]:
        """The indices of the removed neurons, in ascending order. The first of them pad the layer."""
        return self.marked.nonzero().squeeze(1)

    def apply(self) -> None:
        """Replace the parameters by narrower ones, permanently."""
        matrices = self.matrices
        neurons = torch.cat([self.kept, self.removed])[: self.width]
        for sliced in matrices:
            whole = sliced.parameter.data
            sliced.put_tensor(whole.index_select(sliced.axis, neurons.to(whole.device)))
        self.padding(matrices.output.parameter.data).zero_()
        for whole, parts in matrices.joined:
            whole.put_tensor(torch.cat([part.parameter.data for part in parts], dim=whole.axis))
            for part, half in zip(parts, whole.parameter.data.chunk(len(parts), dim=whole.axis), strict=True):
                part.put_tensor(half)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Context manager that temporarily narrows the weights.

        Kept neurons move to the front of each tensor, and each parameter becomes a view of that prefix. The overwritten
        slices, at most a quarter of the tensor, are saved and restored on exit.
        """
        early, late = self._moves()
        before = [(sliced, sliced.parameter) for sliced in self.matrices]
        overwritten = [whole.data.index_select(sliced.axis, early.to(whole.device)) for sliced, whole in before]
        padding = self.padding(self.matrices.output.parameter.data)
        overwritten_padding = padding.clone()
        try:
            for sliced, whole in before:
                moved = whole.data.index_select(sliced.axis, late.to(whole.device))
                whole.data.index_copy_(sliced.axis, early.to(whole.device), moved)
            padding.zero_()
            for sliced, whole in before:
                sliced.put_tensor(whole.data.narrow(sliced.axis, 0, self.width))
            yield
        finally:
            padding.copy_(overwritten_padding)
            for (sliced, whole), slices in zip(before, overwritten, strict=True):
                whole.data.index_copy_(sliced.axis, early.to(whole.device), slices)
                sliced.put(whole)

    def padding(self, output: torch.Tensor) -> torch.Tensor:
        """Return the slices of the narrowed output weights that must be zero: those after the kept neurons."""
        return output.narrow(self.matrices.output.axis, len(self.kept), self.width - len(self.kept))

    @property
    def first(self) -> Int[torch.Tensor, " kept"]:
        """The kept neurons in the order in which `in_force` stores them, which moves as few of them as possible."""
        early, late = self._moves()
        order = torch.arange(len(self.kept))
        order[early] = late
        return order

    def _moves(self) -> tuple[Int[torch.Tensor, " move"], Int[torch.Tensor, " move"]]:
        """Return the removed neurons within the prefix, and as many kept neurons behind it that take their places."""
        count = len(self.kept)
        return self.removed[self.removed < count], self.kept[self.kept >= count]


def matrices_of(model: Any, groups: Iterable[NeuronGroup]) -> list[Matrices]:
    """Return the parameters of each "mlp" group.

    Args:
        model: Hooked model.
        groups: Neuron groups at site "mlp".

    Raises:
        SpLensError: If neurons cannot be removed from the weights, because they are quantized, on disk, shared by
            several layers, or in a module that is neither an `nn.Linear` nor a Conv1D.
    """
    layers = [_matrices(model, group) for group in groups]
    uses = Counter(id(sliced.parameter) for matrices in layers for sliced in matrices)
    for matrices in layers:
        if any(uses[id(sliced.parameter)] > 1 for sliced in matrices):
            raise _cannot_remove(model, matrices.group, "are shared with another layer")
    return layers


def _matrices(model: Any, group: NeuronGroup) -> Matrices:
    mlp = model.blocks[group.layer].mlp
    component = getattr(mlp, "original_component", None)
    matrices = _of_hooked_transformer(group, mlp) if component is None else _of_bridge(model, group, mlp)
    for sliced in matrices:
        # A packed format is a class of its own, and weights on disk are on the device "meta".
        plain = type(sliced.parameter) is torch.nn.Parameter and not sliced.parameter.is_meta
        if not plain or sliced.parameter.shape[sliced.axis] != group.width:
            raise _cannot_remove(model, group, "are quantized or offloaded to disk")
    return matrices if component is None else replace(matrices, joined=tuple(_joined(component, matrices.inputs)))


def _of_hooked_transformer(group: NeuronGroup, mlp: Any) -> Matrices:
    axes = {"W_in": 1, "W_gate": 1, "b_in": 0}
    inputs = [Sliced(mlp, name, axis) for name, axis in axes.items() if name in mlp._parameters]
    return Matrices(group, tuple(inputs), Sliced(mlp, "W_out", 0))


def _of_bridge(model: Any, group: NeuronGroup, mlp: Any) -> Matrices:
    # The bridge of Llama 4 uses other names, because some of its blocks are mixtures of experts.
    prefix = "" if hasattr(mlp, "out") else "dense_"
    names = [f"{prefix}{name}" for name in ("in", "gate", "out") if hasattr(mlp, f"{prefix}{name}")]
    if len(names) < 2:
        modules = ", ".join(name for name, _ in mlp.named_children() if not name.startswith(("hook_", "_")))
        raise _cannot_remove(model, group, f"are in modules that TransformerLens does not name ({modules or 'none'})")
    modules = [getattr(mlp, name).original_component for name in names]
    for module in modules:
        if type(module) not in _SIZES or module._parameters.get("weight") is None:
            raise _cannot_remove(model, group, f"are in a {type(module).__name__}")
    *projections, out = modules
    inputs = tuple(sliced for module in projections for sliced in _sliced_by_output(module))
    # The neurons are the input of the output projection. Its bias does not belong to any neuron.
    output = Sliced(out, "weight", 1 if type(out) is torch.nn.Linear else 0, _SIZES[type(out)][0])
    return Matrices(group, inputs, output)


def _sliced_by_output(module: Any) -> Iterator[Sliced]:
    """Yield the weight and the bias of a module, sliced along its output."""
    size = _SIZES[type(module)][1]
    yield Sliced(module, "weight", 0 if type(module) is torch.nn.Linear else 1, size)
    if module.bias is not None:
        yield Sliced(module, "bias", 0, size)


def _joined(component: torch.nn.Module, inputs: Sequence[Sliced]) -> Iterator[Joined]:
    """Yield the parameters of the transformers module whose memory contains several of the inputs."""
    for module in component.modules():
        for whole in _sliced_by_output(module) if type(module) in _SIZES else ():
            if type(whole.parameter) is not torch.nn.Parameter:
                continue
            first = whole.parameter.data_ptr()
            last = first + whole.parameter.nbytes
            parts = [sliced for sliced in inputs if first <= sliced.parameter.data_ptr() < last]
            if len(parts) > 1:
                yield Joined(whole, tuple(sorted(parts, key=lambda part: part.parameter.data_ptr())))


def _cannot_remove(model: Any, group: NeuronGroup, reason: str) -> SpLensError:
    return SpLensError(
        f"the weights behind {group.name} of {kind_of(model)} {reason}, so neurons cannot be removed from them. "
        "Ablation by hooks works (ablate, prune). To compact, load the model in float16 or bfloat16."
    )

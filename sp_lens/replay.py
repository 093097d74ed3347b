"""A forward pass that is remembered, and run again from one site on, for several copies of the batch at once."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float

from sp_lens.sites import NeuronGroup, attentions, blocks_of, upstream

Stream = Float[torch.Tensor, "... row pos d_model"]


class Replay:
    """What the blocks and the attentions of a model returned in one pass; later passes need not compute it again.

    A later pass is a forward pass of the whole model, which makes its own positions and attention masks; only that
    modules upstream of a site return what is remembered, once for each copy of the rows, and compute nothing; and an
    attention starts from what its heads read, where its output weights are a module of their own.
    TransformerLens' own `start_at_layer` does not do: the bridge of 3.9 refuses it, that of 4.3 runs the blocks below
    all the same, and neither takes images.

    Example:
        >>> import sp_lens as sp
        >>> model, tokens = sp.load_model("demo"), torch.arange(5, 9)[None]
        >>> replay, last = Replay(model), sp.layout_of(model)[-1]
        >>> with torch.no_grad():
        ...     with replay.recording():
        ...         logits = model(tokens)
        ...     with replay.resuming(last, copies=3):
        ...         again = model(tokens.repeat(3, 1))
        >>> torch.allclose(again, logits.repeat(3, 1, 1), atol=1e-4)
        True
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._returned: dict[torch.nn.Module, tuple[Stream, int | None]] = {}
        self._multiplied: dict[torch.nn.Module, Stream] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Remember the pass inside the `with`; one that was remembered before is forgotten."""
        self._returned, self._multiplied = {}, {}
        there = attentions(self._model)
        handles = [module.register_forward_hook(self._remember) for module in (*blocks_of(self._model), *there)]
        handles += [last.register_forward_pre_hook(self._remember_input) for last in there.values() if last is not None]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def resuming(self, group: NeuronGroup, copies: int) -> Iterator[None]:
        """Passes over so many copies of the rows, in which nothing upstream of the group is computed."""
        instead = {
            module: partial(self._answer, module, partial(_repeated, self._returned[module][0], copies))
            for module in upstream(self._model, group)
            if module in self._returned
        }
        if group.site == "attn":
            attention = blocks_of(self._model)[group.layer].attn
            last = attentions(self._model)[attention]
            if last in self._multiplied and torch.equal(last(self._multiplied[last]), self._returned[attention][0]):
                instead[attention] = partial(
                    self._answer, attention, lambda: last(_repeated(self._multiplied[last], copies))
                )
        with ExitStack() as stack:
            for module, forward in instead.items():
                stack.enter_context(_instead(module, forward))
            yield

    def _remember(self, module: torch.nn.Module, _: Any, output: Any) -> None:
        # What comes with the stream (attention patterns, as large as all else together) nothing in a pass looks at.
        self._returned[module] = (output[0], len(output)) if isinstance(output, tuple) else (output, None)

    def _remember_input(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self._multiplied[module] = inputs[0]

    def _answer(self, module: torch.nn.Module, stream: Callable[[], Stream], *_: Any, **__: Any) -> Any:
        """What the module returns where its stream is this one, in the shape that it returned it in."""
        length = self._returned[module][1]
        return stream() if length is None else (stream(), *[None] * (length - 1))


def _repeated(stream: Stream, copies: int) -> Stream:
    return torch.cat([stream] * copies, dim=-3)


@contextmanager
def _instead(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another `forward` for the length of a `with`.

    Not by assigning: a bridge's component hands on what is assigned to it to the module that it wraps.
    """
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = own

"""Selective pruning and neuron specialisation on TransformerLens (arXiv 2403.01267).

import sp_lens as sp

model = sp.load_model("demo")
forget = sp.load_corpus("code", model, tokens=20_000, offline=True)
retain = sp.load_corpus("prose", model, tokens=20_000, offline=True)
scores = sp.score(sp.collect(model, forget), sp.collect(model, retain), metric="abs")
with sp.ablate(model, scores.top(0.1, site="mlp")):
    print(sp.evaluate(model, sp.load_corpus("code", model, tokens=20_000, split="evaluate", offline=True)))
"""

from importlib.metadata import version as _version

import lazy_loader as _lazy

__version__ = _version("sp_lens")

# The public names are the imports of the stub, __init__.pyi. Each is imported when it is first used, so
# `sp-lens --help` does not wait for torch.
__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)

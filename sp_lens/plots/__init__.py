"""The figures of arXiv 2403.01267: statistics or runs in, a plotly figure out. No torch and no model in here."""

from sp_lens.plots.density import density
from sp_lens.plots.tradeoff import tradeoff

__all__ = ["density", "tradeoff"]

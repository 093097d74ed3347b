"""How sure an importance or a score is: standard errors and intervals over documents, from statistics by folds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float

from sp_lens.errors import SpLensError
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.neurons.mapping import ABOUT
from sp_lens.neurons.values import NeuronValues
from sp_lens.scoring.score import eps_by_site, score
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.storage.serialization import opened, save_tensors
from sp_lens.typing import EPS, Metric, Site

_PARTS = ("values", "standard_error", "low", "high")


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """The importance or the score of every neuron, its standard error, and its confidence interval.

    Attributes:
        values: as `importance` or `score` returns them.
        standard_error: by the jackknife over folds of documents.
        low: the lower ends of the intervals.
        high: the upper ends.
    """

    values: NeuronValues
    standard_error: NeuronValues
    low: NeuronValues
    high: NeuronValues

    @property
    def layout(self) -> Layout:
        """The neuron groups, in layer order."""
        return self.values.layout

    def select(self, site: Site) -> "Uncertainty":
        """The part at one site."""
        return Uncertainty(*(getattr(self, part).select(site) for part in _PARTS))

    def frame(self) -> pd.DataFrame:
        """One row a neuron: site, layer, head, neuron, value, standard_error, low, high."""
        others = {part: getattr(self, part).frame()["value"] for part in _PARTS[1:]}
        return self.values.frame().assign(**others)

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, whole or not at all."""
        tensors = {f"{part}/{name}": getattr(self, part)[name] for part in _PARTS for name in self.layout.names}
        save_tensors(path, "Uncertainty", tensors, {"layout": self.layout.to_json(), "about": self.values.about})

    @classmethod
    def load(cls, path: str | Path) -> "Uncertainty":
        """Read what `save` wrote.

        Raises:
            SpLensError: when the file is missing, cut short, foreign, or holds something else.
        """
        with opened(path, "Uncertainty", {"layout": Any, "about": ABOUT}) as (tensors, header):
            layout = Layout.from_json(header["layout"])
            parts = ({name: tensors[f"{part}/{name}"] for name in layout.names} for part in _PARTS)
            return cls(*(NeuronValues(layout, part, header["about"]) for part in parts))

    def __repr__(self) -> str:
        return f"Uncertainty({self.values.about.get('level')} of {self.layout})"


def uncertainty(
    forget: ActivationStats,
    retain: ActivationStats | None = None,
    *,
    metric: Metric = "abs",
    eps: float | Mapping[Site, float] = EPS,
    level: float = 0.95,
) -> Uncertainty:
    """Standard errors and confidence intervals of an importance, or of the score of two corpora.

    They say what other documents of the same kinds would have given. A document is the unit, not a token: the tokens of
    one are alike, and intervals that take each token for new evidence are several times too short. Statistics by
    folds of documents are enough for it, by the delete-one-fold jackknife; of a score, the two corpora are
    independent, so the squares of their relative standard errors add up.

    An interval is value * exp(± t * standard error / value): the logarithm of an importance or of a ratio is closer to
    normal than the number itself, and the ends are never below 0. Student's t has the degrees of freedom of folds of
    such sizes, fewer than folds - 1 where a few hold most tokens (Satterthwaite 1946). Simulated with 40 and with 120
    documents, 95 % intervals hold the truth 93 to 97 times of 100 (the page Uncertainty).

    Args:
        forget: statistics by folds, `collect(model, corpus, folds=20)`.
        retain: the same of the corpus that is kept, for the score (Definition 2); None for the importance on `forget`.
        metric: "abs", "rms", "std" or "freq" (Definition 1).
        eps: added to the retain importance, see `score`.
        level: of confidence.

    Returns:
        `Uncertainty`: `.frame()` has a row a neuron. A neuron that never fires has the value 0, for sure. The interval
        of an importance is of this corpus' kind of text, of all neurons each by itself: among many neurons, some lie
        outside (`specialised` tests them all).

    Raises:
        SpLensError: for statistics without folds or of different models, an unknown metric, a negative eps, and a
            level that is no share.
    """
    if not 0 < level < 1:
        raise SpLensError(f"level {level}: expected a share between 0 and 1, such as 0.95.")
    by_site = eps_by_site(eps)
    sides = [forget] if retain is None else [forget, retain]
    require_folds(*sides)
    importances = [side.importance(metric) for side in sides]
    values = importances[0] if retain is None else score(forget, retain, metric=metric, eps=by_site)
    errors = [side.standard_error(metric) for side in sides]
    parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in _PARTS}
    for group in forget.layout:
        relative = [_relative(importances[0], errors[0], group, 0.0)]
        if retain is not None:
            relative.append(_relative(importances[1], errors[1], group, by_site[group.site]))
        value, freedom = values[group.name], _freedom(relative, [_freedom_of(side) for side in sides])
        error = torch.stack(relative).square().sum(dim=0).sqrt()
        reach = torch.exp(_quantile(level, freedom) * error)
        for part, tensor in zip(_PARTS, (value, value * error, value / reach, value * reach), strict=True):
            parts[part][group.name] = tensor
    about = {**values.about, "level": level, "folds": [len(side.folds) for side in sides]}
    return Uncertainty(*(NeuronValues(forget.layout, parts[part], about) for part in _PARTS))


def require_folds(forget: ActivationStats, retain: ActivationStats | None = None) -> None:
    """Refuse what is no statistics by folds, and statistics of different models."""
    for name, side in (("forget", forget), ("retain", retain)):
        if side is None:
            continue
        if not isinstance(side, ActivationStats):
            raise SpLensError(f"{name} is a {type(side).__name__}: expected ActivationStats, as collect() returns.")
        side.require_folds()
        forget.require_same_model(side)


def _relative(importance: NeuronValues, error: NeuronValues, group: NeuronGroup, eps: float) -> torch.Tensor:
    """The standard error over what it is of; 0 where a neuron never fires."""
    return (error[group.name] / (importance[group.name] + eps)).masked_fill(error[group.name] == 0, 0)


def _freedom_of(stats: ActivationStats) -> float:
    """Degrees of freedom of a variance over folds of unequal sizes: folds - 1 where all are equal.

    What a fold adds to the variance goes with the square of its tokens, as those of a document are alike.
    """
    squares = torch.tensor([fold.count for fold in stats.folds], dtype=torch.float64).square()
    return float(squares.sum() ** 2 / squares.square().sum()) - 1


def _freedom(relative: list[Float[torch.Tensor, " neuron"]], of_sides: list[float]) -> Float[torch.Tensor, " neuron"]:
    """Degrees of freedom of a sum of squared standard errors (Welch 1947), those of one side at least."""
    squares = torch.stack(relative).square()
    shares = (squares / squares.sum(dim=0)).nan_to_num(1 / len(relative))
    return 1 / (shares.square() / torch.tensor(of_sides)[:, None]).sum(dim=0)


def _quantile(level: float, freedom: Float[torch.Tensor, " neuron"]) -> Float[torch.Tensor, " neuron"]:
    from scipy.special import stdtrit  # here and not above: scipy takes a while to import, and few need it

    quantiles: Any = stdtrit(freedom.numpy(), (1 + level) / 2)
    return torch.from_numpy(quantiles)

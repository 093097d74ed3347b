"""Compute standard errors and confidence intervals of importances and scores with the jackknife over folds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float

from sp_lens.errors import SpLensError
from sp_lens.neurons.layout import Layout
from sp_lens.neurons.mapping import ABOUT
from sp_lens.neurons.values import NeuronValues
from sp_lens.scoring.score import eps_by_site, score
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.storage.serialization import opened, save_tensors
from sp_lens.typing import EPS, Metric, Site

_PARTS = ("values", "standard_error", "low", "high")


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """The importance or the score of every neuron with its standard error and its confidence interval.

    Attributes:
        values: The importances or scores, as `ActivationStats.importance` or `score` returns them.
        standard_error: Jackknife standard errors over the folds of documents.
        low: Lower ends of the confidence intervals.
        high: Upper ends of the confidence intervals.
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
        """Return the part of the result at one site."""
        return Uncertainty(*(getattr(self, part).select(site) for part in _PARTS))

    def frame(self) -> pd.DataFrame:
        """Return one row per neuron with the columns site, layer, head, neuron, value, standard_error, low, high."""
        columns = {part: getattr(self, part).frame()["value"] for part in _PARTS[1:]}
        return self.values.frame().assign(**columns)

    def save(self, path: str | Path) -> None:
        """Write the result to a safetensors file, atomically."""
        tensors = {f"{part}/{name}": getattr(self, part)[name] for part in _PARTS for name in self.layout.names}
        save_tensors(path, "Uncertainty", tensors, {"layout": self.layout.to_json(), "about": self.values.about})

    @classmethod
    def load(cls, path: str | Path) -> "Uncertainty":
        """Read a file that `save` wrote.

        Raises:
            SpLensError: If the file is missing, truncated, was not written by sp_lens, or contains another result.
        """
        with opened(path, "Uncertainty", {"layout": Any, "about": ABOUT}) as (tensors, header):
            layout = Layout.from_json(header["layout"])
            parts = ({name: tensors[f"{part}/{name}"] for name in layout.names} for part in _PARTS)
            return cls(*(NeuronValues(layout, part, header["about"]) for part in parts))

    def __repr__(self) -> str:
        return f"Uncertainty(level {self.values.about.get('level')}, {self.layout})"


def uncertainty(
    forget: ActivationStats,
    retain: ActivationStats | None = None,
    *,
    metric: Metric = "abs",
    eps: float | Mapping[Site, float] = EPS,
    level: float = 0.95,
) -> Uncertainty:
    """Compute the standard error and confidence interval of every importance, or of every score.

    They describe how much the value would differ on other documents of the same kind. The statistical unit is the
    document and not the token: the tokens of one document are alike, so intervals that treat each token as independent
    evidence are several times too short. The standard error of an importance is that of the delete-one-fold jackknife.
    For a score, the two corpora are independent, so the squares of their relative standard errors are added.

    The confidence interval is computed on the logarithm, whose distribution is closer to normal than that of an
    importance or a ratio, and whose ends are never below 0:

        value * exp(± t * standard_error / value)

    Here t is the quantile of Student's t distribution. If a few folds hold most of the tokens, it has fewer degrees of
    freedom than the number of folds minus 1 (Satterthwaite 1946). In simulations with 40 and with 120 documents,
    95 % intervals contain the true value in 93 to 97 of 100 cases (see the page Uncertainty).

    Args:
        forget: Statistics with folds, `collect(model, corpus, folds=20)`.
        retain: Statistics with folds of the retain corpus, for the score (Definition 2). None computes the uncertainty
            of the importance on `forget` (Definition 1).
        metric: Importance metric: "abs", "rms", "std" or "freq" (Definition 1).
        eps: Constant added to the retain importance: one number, or one number per site (see `score`).
        level: Confidence level, between 0 and 1.

    Returns:
        An `Uncertainty`. Its `frame()` has one row per neuron. A neuron that never fires has the value 0 and the
        interval [0, 0]. The intervals are for texts of the kind of this corpus and for each neuron separately: among
        many neurons, some true values are outside their interval. `specialisation_test` tests all neurons together.

    Raises:
        SpLensError: If the statistics have no folds or come from different models, the metric is unknown, eps is
            negative, or the level is not between 0 and 1.

    Example:
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo")
        >>> code = [f"def f{i}(x): return x * {i}" for i in range(10)]
        >>> prose = [f"On day {i} the boat left at noon." for i in range(10)]
        >>> forget, retain = (sp.collect(model, texts, folds=5, progress=False) for texts in (code, prose))
        >>> uncertainty(forget, retain).frame().columns.tolist()
        ['site', 'layer', 'head', 'neuron', 'value', 'standard_error', 'low', 'high']
    """
    if not 0 < level < 1:
        raise SpLensError(f"level is {level}: expected a number between 0 and 1, such as 0.95.")
    by_site = eps_by_site(eps)
    corpora = [forget] if retain is None else [forget, retain]
    require_folds(*corpora)
    importances = [stats.importance(metric) for stats in corpora]
    errors = [stats.standard_error(metric) for stats in corpora]
    freedoms = [degrees_of_freedom([fold.count for fold in stats.folds]) for stats in corpora]
    values = importances[0] if retain is None else score(forget, retain, metric=metric, eps=by_site)
    parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in _PARTS}
    for group in forget.layout:
        name = group.name
        relative = [_relative_error(importances[0][name], errors[0][name])]
        if retain is not None:
            relative.append(_relative_error(importances[1][name] + by_site[group.site], errors[1][name]))
        relative_errors = torch.stack(relative)
        value, relative_error = values[name], relative_errors.square().sum(dim=0).sqrt()
        t = student_t_quantile(level, _combined_degrees_of_freedom(relative_errors, freedoms))
        factor = torch.exp(t * relative_error)
        results = (value, value * relative_error, value / factor, value * factor)
        for part, tensor in zip(_PARTS, results, strict=True):
            parts[part][name] = tensor
    about = {**values.about, "level": level, "folds": [len(stats.folds) for stats in corpora]}
    return Uncertainty(*(NeuronValues(forget.layout, parts[part], about) for part in _PARTS))


def require_folds(forget: ActivationStats, retain: ActivationStats | None = None) -> None:
    """Raise SpLensError unless these are statistics with folds, of one model."""
    for name, stats in (("forget", forget), ("retain", retain)):
        if stats is None:
            continue
        if not isinstance(stats, ActivationStats):
            raise SpLensError(f"{name} is a {type(stats).__name__}: expected ActivationStats, as collect() returns.")
        stats.require_folds()
        forget.require_comparable(stats)


def _relative_error(
    value: Float[torch.Tensor, " neuron"], standard_error: Float[torch.Tensor, " neuron"]
) -> Float[torch.Tensor, " neuron"]:
    """Divide the standard error by the value. The result is 0 for a neuron that never fires."""
    return (standard_error / value).masked_fill(standard_error == 0, 0)


def degrees_of_freedom(sizes: Sequence[float]) -> float:
    """Compute the degrees of freedom of a variance over folds or documents: their number - 1 if all are of equal size.

    The contribution of a fold to the variance is proportional to the square of its size, as the tokens of a document
    are alike (Satterthwaite 1946). The result is at least 1.
    """
    squares = torch.tensor(sizes, dtype=torch.float64).square()
    return max(1.0, float(squares.sum() ** 2 / squares.square().sum()) - 1)


def _combined_degrees_of_freedom(
    errors: Float[torch.Tensor, "corpus neuron"], freedoms: list[float]
) -> Float[torch.Tensor, " neuron"]:
    """Compute the degrees of freedom of a sum of squared errors, given those of each corpus (Welch 1947)."""
    squares = errors.square()
    fractions = (squares / squares.sum(dim=0)).nan_to_num(1 / len(errors))
    return 1 / (fractions.square() / torch.tensor(freedoms)[:, None]).sum(dim=0)


def student_t_quantile(level: float, freedom: Float[torch.Tensor, " neuron"]) -> Float[torch.Tensor, " neuron"]:
    from scipy.special import stdtrit  # imported here because scipy takes long to import and few functions need it

    quantiles: Any = stdtrit(freedom.numpy(), (1 + level) / 2)
    return torch.from_numpy(quantiles)

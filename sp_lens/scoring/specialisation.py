"""Compute how specific every neuron is to each of two or more corpora (Definition 2, one corpus against the others)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from sp_lens.errors import SpLensError
from sp_lens.neurons.layout import Layout
from sp_lens.neurons.mapping import ABOUT
from sp_lens.neurons.values import NeuronValues
from sp_lens.scoring.score import eps_by_site, score
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.storage.serialization import opened, save_tensors
from sp_lens.typing import EPS, Metric, Site

# Columns of the frames, which cannot be the label of a corpus.
_COLUMNS = ("site", "layer", "head", "neuron", "value", "corpus", "specificity", "neurons", "share")


@dataclass(frozen=True, eq=False)
class Specialisation(Mapping[str, NeuronValues]):
    """The scores of every neuron for each of several corpora against the others: a mapping from corpus to scores.

    The score of a neuron n for a corpus c is

        Importance(c, n) / (mean of Importance(d, n) over the other corpora d + eps)

    For two corpora this is Definition 2. `special["code"].top(0.02, site="mlp")` returns the mask of the neurons that
    are most specific to the corpus "code", for ablation or pruning.

    Attributes:
        importances: Importances of all neurons (Definition 1) by the label of the corpus.
        eps: Constant added to the mean importance on the other corpora, by site.
    """

    importances: Mapping[str, NeuronValues]
    eps: Mapping[Site, float]

    @property
    def layout(self) -> Layout:
        """The neuron groups, in layer order."""
        return next(iter(self.importances.values())).layout

    def __getitem__(self, corpus: str) -> NeuronValues:
        if corpus not in self.importances:
            raise SpLensError(
                f"there is no corpus {corpus!r}: the corpora are {', '.join(map(repr, self.importances))}."
            )
        return score(self.importances[corpus], self._mean_of_others(corpus), eps=self.eps)

    def __iter__(self) -> Iterator[str]:
        return iter(self.importances)

    def __len__(self) -> int:
        return len(self.importances)

    def frame(self) -> pd.DataFrame:
        """Return one row per neuron: site, layer, head, neuron, one score per corpus, corpus, specificity.

        `corpus` is the corpus with the highest score, and the first of several with the same score. It is missing if
        all scores are 0 (the neuron never fires). `specificity` is the highest score.
        """
        scores = {corpus: values.frame() for corpus, values in self.items()}
        frame = next(iter(scores.values())).drop(columns="value")
        columns = np.column_stack([values["value"] for values in scores.values()])  # [neuron corpus]
        highest = columns.max(axis=1)
        codes = np.where(highest > 0, columns.argmax(axis=1), -1)
        return frame.assign(
            **dict(zip(scores, columns.T, strict=True)),
            corpus=pd.Categorical.from_codes(codes, categories=list(scores)),
            specificity=highest,
        )

    def counts(self, *, above: float = 2.0) -> pd.DataFrame:
        """Count the neurons that are most specific to each corpus, by site and layer.

        Args:
            above: Threshold of the specificity. Only neurons above it count; 2 means twice as important as on the
                other corpora.

        Returns:
            One row per site, layer and corpus: site, layer, corpus, neurons, share (fraction of the neurons of that
            site and layer).
        """
        frame = self.frame()
        specific = frame.loc[frame["specificity"] > above]
        counts = specific.groupby(["site", "layer", "corpus"], observed=True).size()
        keys = [(group.site, group.layer, corpus) for group in self.layout for corpus in self]
        widths = np.array([group.width for group in self.layout for _ in self])
        neurons = counts.reindex(pd.MultiIndex.from_tuples(keys), fill_value=0).to_numpy()
        table = pd.DataFrame(keys, columns=["site", "layer", "corpus"])
        return table.assign(neurons=neurons, share=neurons / widths)

    def overlap(self, fraction: float = 0.02, *, site: Site = "mlp") -> pd.DataFrame:
        """Compute how much of the importance on each corpus belongs to the neurons most specific to each corpus.

        This is the part of the importance that pruning these neurons removes.

        Args:
            fraction: Fraction of all neurons of the site to select, those with the highest scores.
            site: Neurons to compare, "mlp" or "attn".

        Returns:
            A frame whose rows are the corpora that the selected neurons are specific to, and whose columns are the
            corpora that their importance is measured on. Values are fractions of the summed importance of all neurons
            of the site. Neurons that are not specific to any corpus would have `fraction` in every column.

        Raises:
            SpLensError: If the fraction selects no neuron, or all importances of the site are 0 on a corpus.
        """
        importances = {corpus: _concatenated(values.select(site)) for corpus, values in self.importances.items()}
        if silent := [corpus for corpus, values in importances.items() if not values.any()]:
            raise SpLensError(
                f"the importances of all {site} neurons on {silent[0]!r} are 0, so fractions of their sum are "
                "undefined: collect more text, or choose another metric."
            )
        rows = {}
        for corpus, scores in self.items():
            selected = _concatenated(scores.top(fraction, site=site))
            rows[corpus] = {other: values[selected].sum() / values.sum() for other, values in importances.items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(self))

    def save(self, path: str | Path) -> None:
        """Write the result to a safetensors file, atomically."""
        tensors = {
            f"{number}/{name}": values[name]
            for number, values in enumerate(self.importances.values())
            for name in self.layout.names
        }
        about = {corpus: dict(values.about) for corpus, values in self.importances.items()}
        header = {"layout": self.layout.to_json(), "about": about, "eps": dict(self.eps)}
        save_tensors(path, "Specialisation", tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "Specialisation":
        """Read a file that `save` wrote.

        Raises:
            SpLensError: If the file is missing, truncated, was not written by sp_lens, or contains another result.
        """
        types = {"layout": Any, "about": Mapping[str, ABOUT], "eps": Mapping[str, float]}
        with opened(path, "Specialisation", types) as (tensors, header):
            layout = Layout.from_json(header["layout"])
            importances = {
                corpus: NeuronValues(layout, {name: tensors[f"{number}/{name}"] for name in layout.names}, about)
                for number, (corpus, about) in enumerate(header["about"].items())
            }
            _check_labels(importances)
            return cls(importances, eps_by_site(header["eps"]))

    def _mean_of_others(self, corpus: str) -> NeuronValues:
        """Average the importances over all corpora but this one."""
        others = [values for label, values in self.importances.items() if label != corpus]
        means = {name: torch.stack([values[name] for values in others]).mean(dim=0) for name in self.layout.names}
        corpora = [source for values in others for source in values.about.get("corpora", [])]
        return NeuronValues(self.layout, means, {**others[0].about, "corpora": corpora})

    def __repr__(self) -> str:
        return f"Specialisation({', '.join(self)}: {self.layout})"


def specialisation(
    stats_by_corpus: Mapping[str, ActivationStats],
    *,
    metric: Metric = "abs",
    eps: float | Mapping[Site, float] = EPS,
) -> Specialisation:
    """Compute how specific every neuron is to each of two or more corpora.

    The score of a neuron for a corpus is its importance there, divided by its mean importance on the other corpora plus
    eps. For two corpora this is the score of Definition 2 in both directions.

    Args:
        stats_by_corpus: Statistics of one model by a label of the corpus, as `collect` returns them.
        metric: Importance metric: "abs", "rms", "std" or "freq" (Definition 1).
        eps: Constant added to the mean importance on the other corpora: one number, or one number per site. The
            defaults are those of `score`.

    Returns:
        A `Specialisation`, a mapping from each corpus to the scores for it against the others.

    Raises:
        SpLensError: If there are fewer than two corpora, a value is not an ActivationStats, the statistics come from
            different models, the metric is unknown, eps is negative, or a label is the name of a column of the frames.

    Example:
        >>> z = torch.tensor([[2.0, 0.0, 1.0]])
        >>> stats = {
        ...     label: ActivationStats.from_cache({"blocks.0.mlp.hook_post": z.roll(shift)[None]})
        ...     for shift, label in enumerate(["python", "novels", "chess"])
        ... }
        >>> specialisation(stats, eps=0).frame()[["neuron", "python", "novels", "chess", "corpus", "specificity"]]
           neuron  python  novels  chess  corpus  specificity
        0       0     4.0     1.0    0.0  python          4.0
        1       1     0.0     4.0    1.0  novels          4.0
        2       2     1.0     0.0    4.0   chess          4.0
    """
    by_site = eps_by_site(eps)
    if not isinstance(stats_by_corpus, Mapping) or isinstance(stats_by_corpus, ActivationStats):
        raise SpLensError(
            f"expected a mapping from labels to ActivationStats, got {type(stats_by_corpus).__name__}: "
            "pass {'code': code_stats, 'prose': prose_stats}."
        )
    _check_labels(stats_by_corpus)
    first = next(iter(stats_by_corpus.values()))
    for label, stats in stats_by_corpus.items():
        if not isinstance(stats, ActivationStats):
            raise SpLensError(f"{label!r} is a {type(stats).__name__}: expected ActivationStats, as collect() returns.")
        first.require_comparable(stats)
    return Specialisation({label: stats.importance(metric) for label, stats in stats_by_corpus.items()}, by_site)


def _check_labels(by_corpus: Mapping[str, Any]) -> None:
    """Raise SpLensError if there are fewer than two corpora, or a label is not text or is the name of a column."""
    if len(by_corpus) < 2:
        raise SpLensError(
            f"the number of corpora is {len(by_corpus)}: pass statistics of two or more, {{label: ActivationStats}}."
        )
    if invalid := [label for label in by_corpus if not isinstance(label, str) or label in _COLUMNS]:
        raise SpLensError(
            f"a corpus has the label {invalid[0]!r}: expected a string that is not one of the column names {_COLUMNS}."
        )


def _concatenated(tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([tensor.cpu().numpy() for tensor in tensors.values()])

"""Which corpus each neuron matters most for, of two or more: Definition 2 with all the others as what is retained."""

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

# Columns of the frames; a corpus of one of these names would hide it.
_COLUMNS = ("site", "layer", "head", "neuron", "value", "corpus", "specificity", "neurons", "share")


@dataclass(frozen=True, eq=False)
class Specialisation(Mapping[str, NeuronValues]):
    """The scores of every neuron for each corpus against the others, by corpus.

    The score for a corpus c is Importance(c, n) / (mean of Importance(d, n) over the other corpora d + eps):
    of two corpora, the score of Definition 2. `special["code"].top(0.02, site="mlp")` is the mask of the
    neurons most specific to code, to ablate or prune.

    Attributes:
        importances: label -> importances (Definition 1) of all neurons on that corpus.
        eps: by site, added to the mean importance on the other corpora.
    """

    importances: Mapping[str, NeuronValues]
    eps: Mapping[Site, float]

    @property
    def layout(self) -> Layout:
        """The neuron groups, in layer order."""
        return next(iter(self.importances.values())).layout

    def __getitem__(self, corpus: str) -> NeuronValues:
        if corpus not in self.importances:
            raise SpLensError(f"no corpus {corpus!r}: there are {', '.join(map(repr, self.importances))}.")
        return score(self.importances[corpus], self._others(corpus), eps=self.eps)

    def __iter__(self) -> Iterator[str]:
        return iter(self.importances)

    def __len__(self) -> int:
        return len(self.importances)

    def frame(self) -> pd.DataFrame:
        """One row a neuron: site, layer, head, neuron, its score for each corpus, corpus, specificity.

        `corpus` is the one with the highest score, the first of equals, and missing where every score is 0
        (a neuron that never fires); `specificity` is that score.
        """
        scores = {corpus: values.frame() for corpus, values in self.items()}
        frame = next(iter(scores.values())).drop(columns="value")
        columns = np.column_stack([one["value"] for one in scores.values()])  # [neuron corpus]
        highest = columns.max(axis=1)
        codes = np.where(highest > 0, columns.argmax(axis=1), -1)
        return frame.assign(
            **dict(zip(scores, columns.T, strict=True)),
            corpus=pd.Categorical.from_codes(codes, categories=list(scores)),
            specificity=highest,
        )

    def counts(self, *, above: float = 2.0) -> pd.DataFrame:
        """How many neurons are most specific to each corpus, layer by layer.

        Args:
            above: count those whose specificity is above this; 2 is twice as important as on the others.

        Returns:
            One row a site, layer and corpus: site, layer, corpus, neurons, share (of the neurons of that
            site and layer).
        """
        frame = self.frame()
        specific = frame.loc[frame["specificity"] > above]
        counts = specific.groupby(["site", "layer", "corpus"], observed=True).size()
        places = [(group.site, group.layer, corpus) for group in self.layout for corpus in self]
        width = [group.width for group in self.layout for _ in self]
        table = pd.DataFrame(places, columns=["site", "layer", "corpus"])
        neurons = counts.reindex(pd.MultiIndex.from_tuples(places), fill_value=0).to_numpy()
        return table.assign(neurons=neurons, share=neurons / np.array(width))

    def overlap(self, fraction: float = 0.02, *, site: Site = "mlp") -> pd.DataFrame:
        """How much the neurons most specific to one corpus matter on each: what pruning them takes away.

        Args:
            fraction: of all neurons of the site, the top of the scores.
            site: "mlp" or "attn".

        Returns:
            A row for the corpus that neurons are specific to, a column for the corpus they are measured on:
            their share of the summed importance of all neurons of the site. Neurons that are specific to
            nothing would have `fraction` in every column.

        Raises:
            SpLensError: when nothing would be chosen, or no neuron of the site has an importance above 0 on a
                corpus.
        """
        totals = {corpus: _flat(values.select(site)) for corpus, values in self.importances.items()}
        if silent := [corpus for corpus, values in totals.items() if not values.any()]:
            raise SpLensError(
                f"the importances of all {site} neurons on {silent[0]!r} are 0, so there is nothing to have a share "
                "of: collect more text, or choose another metric."
            )
        rows = {}
        for corpus, scores in self.items():
            mask = scores.top(fraction, site=site)
            chosen = np.concatenate([mask[name].cpu().numpy() for name in mask])
            rows[corpus] = {other: values[chosen].sum() / values.sum() for other, values in totals.items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(self))

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, whole or not at all."""
        tensors = {
            f"{place}/{name}": values[name]
            for place, values in enumerate(self.importances.values())
            for name in self.layout.names
        }
        about = {corpus: dict(values.about) for corpus, values in self.importances.items()}
        header = {"layout": self.layout.to_json(), "about": about, "eps": dict(self.eps)}
        save_tensors(path, "Specialisation", tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "Specialisation":
        """Read what `save` wrote.

        Raises:
            SpLensError: when the file is missing, cut short, foreign, or holds something else.
        """
        wanted = {"layout": Any, "about": Mapping[str, ABOUT], "eps": Mapping[str, float]}
        with opened(path, "Specialisation", wanted) as (tensors, header):
            layout = Layout.from_json(header["layout"])
            importances = {
                corpus: NeuronValues(layout, {name: tensors[f"{place}/{name}"] for name in layout.names}, about)
                for place, (corpus, about) in enumerate(header["about"].items())
            }
            _check_labels(importances)
            return cls(importances, eps_by_site(header["eps"]))

    def _others(self, corpus: str) -> NeuronValues:
        """The mean importances on the other corpora."""
        others = [values for label, values in self.importances.items() if label != corpus]
        means = {name: torch.stack([values[name] for values in others]).mean(dim=0) for name in self.layout.names}
        corpora = [one for values in others for one in values.about.get("corpora", [])]
        return NeuronValues(self.layout, means, {**others[0].about, "corpora": corpora})

    def __repr__(self) -> str:
        return f"Specialisation({', '.join(self)}: {self.layout})"


def specialisation(
    stats_by_corpus: Mapping[str, ActivationStats],
    *,
    metric: Metric = "abs",
    eps: float | Mapping[Site, float] = EPS,
) -> Specialisation:
    """How specific every neuron is to each of two or more corpora.

    Args:
        stats_by_corpus: label -> statistics of one model, as `collect` returns them.
        metric: "abs", "rms", "std" or "freq" (Definition 1).
        eps: added to the mean importance on the other corpora, one number or one by site; the default is that of
            `score`.

    Returns:
        `Specialisation`, a mapping from each corpus to the scores for it against the others.

    Raises:
        SpLensError: when there are fewer than two corpora, something that is no statistics, statistics of
            different models, an unknown metric, a negative eps, or a label that is a column of the frames.

    Example:
        >>> z = torch.tensor([[2.0, 0.0, 1.0]])
        >>> stats = {
        ...     label: ActivationStats.from_cache({"blocks.0.mlp.hook_post": z.roll(place)[None]})
        ...     for place, label in enumerate(["python", "novels", "chess"])
        ... }
        >>> specialisation(stats, eps=0).frame()[["neuron", "python", "novels", "chess", "corpus", "specificity"]]
           neuron  python  novels  chess  corpus  specificity
        0       0     4.0     1.0    0.0  python          4.0
        1       1     0.0     4.0    1.0  novels          4.0
        2       2     1.0     0.0    4.0   chess          4.0
    """
    by_site = eps_by_site(eps)
    if not isinstance(stats_by_corpus, Mapping) or isinstance(stats_by_corpus, ActivationStats):
        kind = type(stats_by_corpus).__name__
        raise SpLensError(f"expected {{label: ActivationStats}}, got {kind}: say {{'code': stats, 'prose': other}}.")
    _check_labels(stats_by_corpus)
    first = next(iter(stats_by_corpus.values()))
    for label, stats in stats_by_corpus.items():
        if not isinstance(stats, ActivationStats):
            raise SpLensError(f"{label!r} is a {type(stats).__name__}: expected ActivationStats, as collect() returns.")
        first.require_same_model(stats)
    return Specialisation({label: stats.importance(metric) for label, stats in stats_by_corpus.items()}, by_site)


def _check_labels(by_corpus: Mapping[str, Any]) -> None:
    """Refuse fewer than two corpora, and labels that columns of the frames have."""
    if len(by_corpus) < 2:
        raise SpLensError(f"{len(by_corpus)} corpora: expected two or more, {{label: ActivationStats}}.")
    if unfit := [label for label in by_corpus if not isinstance(label, str) or label in _COLUMNS]:
        raise SpLensError(f"a corpus is called {unfit[0]!r}: expected words, and none of the columns {_COLUMNS}.")


def _flat(values: NeuronValues) -> np.ndarray:
    return np.concatenate([values[name].cpu().numpy() for name in values])

"""A distribution of activations with known importances, for the simulations of intervals and tests."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import norm

from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.neurons.values import NeuronValues
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.statistics.moments import Moments

FOLDS = 20
TOPICS = 4  # Each neuron responds to one topic of the document, so neurons with the same topic are correlated.


@dataclass(frozen=True)
class Population:
    """A distribution of activations: z = mean + effect of the document + noise, followed by a ReLU in MLP neurons.

    Attributes:
        mean: Mean of each neuron before the ReLU, in units of the standard deviation of the noise.
        spread: Standard deviation of the effects of documents on each neuron.
        mlp: Number of MLP neurons, which come first. The others are attention neurons, without the ReLU.
    """

    mean: Float[np.ndarray, " neuron"]
    spread: Float[np.ndarray, " neuron"]
    mlp: int

    @classmethod
    def random(cls, generator: np.random.Generator, *, mlp: int, attn: int) -> "Population":
        """Draw a population whose neurons vary like those of the bundled model.

        MLP neurons fire on 1 to 90 % of the tokens, with a median of 6 %. The effects of documents make standard errors
        2 to 10 times those of independent tokens.
        """
        spread = generator.uniform(0.15, 0.5, mlp + attn)
        fires = 1 / (1 + np.exp(-np.clip(generator.normal(-2.75, 1.3, mlp), -4.6, 2.2)))
        means = [norm.ppf(fires) * np.hypot(1, spread[:mlp]), generator.normal(0, 0.5, attn)]
        return cls(np.concatenate(means), spread, mlp)

    def importance(self, metric: str, *, scale: float = 0) -> Float[np.ndarray, " neuron"]:
        """Compute the true importance (Definition 1) of each neuron, with the `scale` of `sample_stats`."""
        width = np.hypot(1, self.spread)
        rate = self.mean / width
        density, above = width * norm.pdf(rate), norm.cdf(rate)
        fires = np.arange(len(self.mean)) < self.mlp
        # First and second moments of the ReLU of a normal variable (MLP), or of its absolute value (attention).
        first = np.where(fires, density + self.mean * above, 2 * density + self.mean * (2 * above - 1))
        second = np.where(fires, (self.mean**2 + width**2) * above + self.mean * density, self.mean**2 + width**2)
        average = np.where(fires, first, self.mean)
        # Moments of the log-normal factor of a document.
        first, average, second = (
            first * np.exp(scale**2 / 2), average * np.exp(scale**2 / 2), second * np.exp(2 * scale**2)
        )  # fmt: skip
        match metric:
            case "abs":
                return first
            case "freq":
                return above
            case "rms":
                return np.sqrt(second)
        return np.sqrt(second - average**2)

    def sample_stats(
        self, generator: np.random.Generator, documents: int, *, folds: int = FOLDS, scale: float = 0
    ) -> ActivationStats:
        """Draw documents and compute their statistics, with documents assigned to folds as in `collect`.

        Args:
            generator: Source of the random numbers.
            documents: Number of documents.
            folds: Number of folds.
            scale: Standard deviation of the logarithm of a factor by which all activations of a document are
                multiplied, for a distribution over documents with a heavier tail.
        """
        lengths = np.clip(generator.lognormal(5.5, 0.8, documents), 20, 1000).astype(int)
        neurons = len(self.mean)
        topics = generator.standard_normal((documents, TOPICS))[:, np.arange(neurons) % TOPICS]
        independent = generator.standard_normal((documents, neurons))
        centres = self.mean + self.spread * (topics + independent) / np.sqrt(2)
        factors = np.exp(scale * generator.standard_normal((documents, neurons))).astype(np.float32)
        parts: list[list[np.ndarray]] = [[] for _ in range(folds)]
        for index, (length, centre) in enumerate(zip(lengths, centres, strict=True)):
            z = generator.standard_normal((length, neurons), dtype=np.float32) + centre.astype(np.float32)
            np.maximum(z[:, : self.mlp], 0, out=z[:, : self.mlp])
            parts[index % folds].append(z * factors[index])
        tensors = [torch.from_numpy(np.concatenate(part)) for part in parts]
        layout = Layout((NeuronGroup("mlp", 0, neurons),))
        (name,) = layout.names
        kept = tuple(
            ActivationStats(layout, {name: Moments.from_activations(tensor)}, {"documents": len(part)})
            for tensor, part in zip(tensors, parts, strict=True)
        )
        return ActivationStats(layout, {name: Moments.from_activations(torch.cat(tensors))}, folds=kept)


def flat(values: NeuronValues) -> Float[np.ndarray, " neuron"]:
    """Return the values of the only group of the layout."""
    (tensor,) = values.tensors.values()
    return tensor.numpy()

"""Define type aliases, allowed values and default constants that several packages share.

This module does not import torch, so the command line can read it before any heavy import.
"""

from collections.abc import Mapping
from typing import Literal, get_args

# Sites. HOOKS contains the component and the hook point of each site in a transformer block. The full names, such as
# "blocks.0.mlp.hook_post", are the keys of all mappings; `NeuronGroup.name` creates them.
Site = Literal["mlp", "attn"]
SITES: tuple[Site, ...] = get_args(Site)
HOOKS: dict[Site, tuple[str, str]] = {"attn": ("attn", "hook_z"), "mlp": ("mlp", "hook_post")}
AnySite = Literal[Site, "both"]

# Importance metrics (Definition 1), and "random", the control.
Metric = Literal["abs", "rms", "std", "freq"]
METRICS: tuple[Metric, ...] = get_args(Metric)
ScoreMetric = Literal[Metric, "random"]
SCORE_METRICS: tuple[ScoreMetric, ...] = (*METRICS, "random")

# How the values of a head's neurons become one value (Definition 3).
Aggregate = Literal["mean", "median", "max", "l2", "sum"]
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)

# Token positions whose activations are collected: text that follows other text in its row, or all but padding.
Positions = Literal["text", "all"]
POSITIONS: tuple[Positions, ...] = get_args(Positions)

# What is pruned or ablated as a whole.
Unit = Literal["head", "neuron"]
UNITS: tuple[Unit, ...] = get_args(Unit)

# What replaces an ablated activation.
Mode = Literal["zero", "mean", "resample"]
MODES: tuple[Mode, ...] = get_args(Mode)

# The two corpora of a score.
Side = Literal["forget", "retain"]
SIDES: tuple[Side, ...] = get_args(Side)

# Dataset splits. A document is in exactly one of them; `sp_lens.data.sources.offline.split_of` assigns it.
Split = Literal["train", "collect", "evaluate"]
SPLITS: tuple[Split, ...] = get_args(Split)

# What a model predicts: the next token, masked tokens, or the class of an image.
Task = Literal["causal", "masked", "image"]

# Added to the retain importance, per site, in the released experiments 1 and 2 (Definition 2).
EPS: Mapping[Site, float] = {"mlp": 1e-3, "attn": 1e-4}

# Tokens per batch, including padding.
BATCH_TOKENS = 4096


def sites_of(site: AnySite) -> tuple[Site, ...]:
    """Return the sites that `site` stands for: both of them for "both"."""
    return SITES if site == "both" else (site,)

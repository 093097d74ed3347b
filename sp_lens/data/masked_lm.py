"""Which tokens of a row a masked language model is asked for, and what stands in their place."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from sp_lens.data.batching import Batch
from sp_lens.data.tokenization import Row, tokenizer_of

# As BERT was trained (Devlin et al. 2019, section 3.1) and RoBERTa is evaluated in arXiv 2403.01267.
CHOSEN_SHARE = 0.15
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the chosen; the rest stay as they are


def mask_tokens(model: Any, batch: Batch, seed: int) -> tuple[Batch, Bool[torch.Tensor, "row pos"]]:
    """The batch with some of its tokens hidden, and which ones were chosen.

    Of the counted tokens of a row 15 % are chosen, one at least; of these 80 % become the mask token, 10 % a random
    ordinary one, and 10 % stay. It depends on the seed and on the row's place in the corpus alone, not on the batch.
    """
    tokenizer = tokenizer_of(model)
    ordinary = np.setdiff1d(np.arange(min(len(tokenizer), model.cfg.d_vocab)), tokenizer.all_special_ids)
    tokens, chosen = batch.tokens.clone(), torch.zeros_like(batch.counted)
    for number, row in enumerate(batch.rows):
        generator = np.random.default_rng((seed, row.number))
        places = _chosen(row, generator)
        dice = torch.from_numpy(generator.random(len(places)))
        randoms = torch.from_numpy(generator.choice(ordinary, len(places)))
        hidden = torch.where(dice < MASKED_SHARE + RANDOM_SHARE, randoms, row.tokens[places])
        tokens[number, places] = torch.where(dice < MASKED_SHARE, tokenizer.mask_token_id, hidden)
        chosen[number, places] = True
    return replace(batch, tokens=tokens), chosen


def _chosen(row: Row, generator: np.random.Generator) -> torch.Tensor:
    counted = row.counted.nonzero().squeeze(1).numpy()
    count = min(len(counted), max(1, round(CHOSEN_SHARE * len(counted))))
    return torch.from_numpy(np.sort(generator.choice(counted, size=count, replace=False)))

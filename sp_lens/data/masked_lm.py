"""Choose the tokens that a masked language model predicts, and replace them in its input."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from sp_lens.data.batch import Batch
from sp_lens.data.rows import Row
from sp_lens.data.tokenization import tokenizer_of

# As in the training of BERT (Devlin et al. 2019, section 3.1) and the evaluation of RoBERTa in arXiv 2403.01267.
CHOSEN_SHARE = 0.15
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1  # shares of the chosen tokens; the others are kept


def mask_tokens(model: Any, batch: Batch, seed: int) -> tuple[Batch, Bool[torch.Tensor, "row pos"]]:
    """Mask tokens of a batch, and return the new batch and which tokens were chosen.

    In each row 15 % of the counted tokens are chosen, but at least one. Of these, 80 % are replaced by the mask token,
    10 % by a random ordinary token, and 10 % are kept. The choice depends only on the seed and on the index of the row
    in the corpus, not on the batch.
    """
    tokenizer = tokenizer_of(model)
    ordinary = np.setdiff1d(np.arange(min(len(tokenizer), model.cfg.d_vocab)), tokenizer.all_special_ids)
    tokens, chosen = batch.tokens.clone(), torch.zeros_like(batch.counted)
    for index, row in enumerate(batch.rows):
        generator = np.random.default_rng((seed, row.number))
        positions = _chosen_positions(row, generator)
        draws = torch.from_numpy(generator.random(len(positions)))
        random_tokens = torch.from_numpy(generator.choice(ordinary, len(positions)))
        random_or_kept = torch.where(draws < MASKED_SHARE + RANDOM_SHARE, random_tokens, row.tokens[positions])
        tokens[index, positions] = torch.where(draws < MASKED_SHARE, tokenizer.mask_token_id, random_or_kept)
        chosen[index, positions] = True
    return replace(batch, tokens=tokens), chosen


def _chosen_positions(row: Row, generator: np.random.Generator) -> torch.Tensor:
    counted = row.counted.nonzero().squeeze(1).numpy()
    count = min(len(counted), max(1, round(CHOSEN_SHARE * len(counted))))
    return torch.from_numpy(np.sort(generator.choice(counted, size=count, replace=False)))

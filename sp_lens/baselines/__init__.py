"""Other methods of unlearning, to hold selective pruning against: same corpora in, same history and figures out.

Each gives the model back as it was. `prune(..., metric="random")` is one more control.
"""

from sp_lens.baselines.amnesiac import amnesiac
from sp_lens.baselines.bad_teacher import bad_teacher
from sp_lens.baselines.dampening import selective_synaptic_dampening
from sp_lens.baselines.fine_tune import fine_tune
from sp_lens.baselines.gradient_ascent import gradient_ascent
from sp_lens.baselines.magnitude import magnitude
from sp_lens.baselines.run import BaselineRun
from sp_lens.baselines.task_arithmetic import task_arithmetic
from sp_lens.baselines.unsir import unsir

__all__ = [
    "BaselineRun",
    "amnesiac",
    "bad_teacher",
    "fine_tune",
    "gradient_ascent",
    "magnitude",
    "selective_synaptic_dampening",
    "task_arithmetic",
    "unsir",
]

"""Other methods of unlearning, to hold selective pruning against: same corpora in, same history and figures out.

Each gives the model back as it was. `prune(..., metric="random")` is one more control.
"""

from sp_lens.unlearning.amnesiac import amnesiac
from sp_lens.unlearning.bad_teacher import bad_teacher
from sp_lens.unlearning.dampening import selective_synaptic_dampening
from sp_lens.unlearning.fine_tune import fine_tune
from sp_lens.unlearning.gradient_ascent import gradient_ascent
from sp_lens.unlearning.magnitude import magnitude
from sp_lens.unlearning.membership import MembershipInference, membership_inference
from sp_lens.unlearning.relearning import Relearning, relearning
from sp_lens.unlearning.run import UnlearningRun
from sp_lens.unlearning.task_arithmetic import task_arithmetic
from sp_lens.unlearning.unsir import unsir

__all__ = [
    "MembershipInference",
    "Relearning",
    "UnlearningRun",
    "amnesiac",
    "bad_teacher",
    "fine_tune",
    "gradient_ascent",
    "magnitude",
    "membership_inference",
    "relearning",
    "selective_synaptic_dampening",
    "task_arithmetic",
    "unsir",
]

"""Other methods of machine unlearning, for comparison with selective pruning, and measures of what they leave behind.

Each method takes the corpora of `prune`, evaluates the model after each step, restores its weights, and returns a run
with the same history. `membership_inference` and `relearning` measure whether a model has forgotten or only hides what
it knows. Another control is `prune(..., metric="random")`.
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
from sp_lens.unlearning.training import RunOptions, TrainingOptions
from sp_lens.unlearning.unsir import unsir

__all__ = [
    "MembershipInference",
    "Relearning",
    "RunOptions",
    "TrainingOptions",
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

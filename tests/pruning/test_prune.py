"""Compare Algorithm 1 with an implementation on plain transformers, and test interrupted, killed and resumed runs."""

import inspect
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from factories import Tiny, plain_activations, random_mask, random_rows, tiny_bridge, tiny_hf, zero_rows

import sp_lens as sp
from sp_lens.data.corpora import Corpora
from sp_lens.pruning.config import PruneConfig

pytestmark = pytest.mark.model


def corpora() -> Corpora:
    """Forget text from the lower half of the vocabulary and retain text from the upper half."""
    forget, retain, eval_forget, eval_retain = (
        [row % 2000 + offset for row in random_rows(8, seed=seed)] for seed, offset in enumerate((2, 2048, 2, 2048))
    )
    return Corpora(forget, retain, eval_forget, eval_retain)


def prune(model: Any, **options: Any) -> sp.PruneRun:
    """Run Algorithm 1 for three steps of 10 %; `options` override these defaults."""
    return sp.prune(model, **{**corpora(), "steps": 3, "fraction": 0.1, "progress": False, **options})


def test_masks_are_those_of_algorithm_1_on_plain_transformers(tiny: Tiny) -> None:
    text = corpora()
    run = prune(tiny.model, site="mlp", metric="rms")
    layout = sp.layout_of(tiny.model).select("mlp")
    per_step = round(0.1 * layout.neurons)
    pruned: list[tuple[str, int]] = []
    for step in (1, 2, 3):
        hf = tiny_hf(tiny.family)
        tensors = {name: list(range(0)) for name in layout.names}
        for name, neuron in pruned:
            tensors[name].append(neuron)
        zero_rows(tiny.family, hf, sp.NeuronMask.from_neurons(layout, tensors))
        sides = [plain_activations(tiny.family, hf, text[side]) for side in ("forget", "retain")]
        scores = []
        for layer, name in enumerate(layout.names):
            forget, retain = (side[name].square().mean(0).sqrt() for side in sides)
            for neuron, value in enumerate((forget / (retain + 1e-3)).tolist()):
                if (name, neuron) not in pruned:
                    scores.append((-value, layer, neuron, name))
        pruned += [(name, neuron) for _, _, neuron, name in sorted(scores)[:per_step]]
        assert {(name, int(n)) for name, mask in run.mask_at(step).items() for n in mask.nonzero()} == set(pruned)
    assert run.history["share"].tolist() == [pytest.approx(step * per_step / layout.neurons) for step in range(4)]


def test_the_history_equals_an_evaluation_of_each_mask(opt: Any) -> None:
    run = prune(opt, site="both")
    text = corpora()
    for step in range(4):
        with sp.ablate(opt, run.mask_at(step)):
            for side in ("forget", "retain"):
                result = sp.evaluate(opt, text[f"eval_{side}"], progress=False)
                assert run.history[f"{side}_loss"][step] == result.loss
                assert run.history[f"{side}_top1"][step] == result.top1
    assert run.history["forget_drop"][0] == 0
    drops = run.history["forget_drop"] - run.history["retain_drop"]
    assert run.best_step == drops.argmax()
    assert run.selectivity == run.best_hits().selectivity


def test_without_recollecting_all_steps_follow_one_ranking(opt: Any) -> None:
    run = prune(opt, recollect=False, site="attn")
    text = corpora()
    stats = [sp.collect(opt, text[side], progress=False) for side in ("forget", "retain")]
    scores = sp.score(*stats, metric="abs")
    for step in (1, 2, 3):
        best = scores.top(step * 0.1, site="attn")
        # 0.1 of 64 neurons is 6 per step: three steps prune 18 neurons, and 0.3 of 64 is 19.
        assert all((run.mask_at(step)[name] <= best[name]).all() for name in run.mask)


def test_whole_heads_are_pruned(opt: Any) -> None:
    run = prune(opt, site="attn", unit="head", fraction=0.25, steps=2)
    for mask in run.mask.values():
        by_head = mask.view(4, 8)
        assert torch.equal(by_head.all(1), by_head.any(1))
    assert run.mask.count() == 4 * 8
    stats = [sp.collect(opt, corpora()[side], progress=False) for side in ("forget", "retain")]
    heads = sp.score(*(side.importance("abs").heads("mean") for side in stats))
    assert heads.top(0.25) == run.mask_at(1)


def test_random_pruning_depends_on_the_seed_only(opt: Any) -> None:
    first, same_seed, other_seed = (prune(opt, metric="random", seed=seed) for seed in (1, 1, 2))
    assert first.mask == same_seed.mask
    assert first.mask != other_seed.mask
    heads = prune(opt, metric="random", site="attn", unit="head", fraction=0.25, steps=2)
    assert heads.mask.count() == 4 * 8


def test_two_runs_are_equal(opt: Any) -> None:
    first, second = prune(opt), prune(opt)
    assert first.mask == second.mask
    pd.testing.assert_frame_equal(first.history, second.history, check_exact=True)


def test_a_run_stops_at_an_accuracy_threshold(opt: Any) -> None:
    assert prune(opt, min_retain_top1=1.1).steps == 0
    assert prune(opt, max_forget_top1=1.0).steps == 0
    assert prune(opt, min_retain_top1=0.0, max_forget_top1=-1.0).steps == 3


def test_the_model_is_not_changed(opt: Any) -> None:
    before = opt(torch.arange(2, 20)[None])
    prune(opt)
    assert torch.equal(opt(torch.arange(2, 20)[None]), before)


def test_a_run_resumes_from_any_step(opt: Any, tmp_path: Path) -> None:
    """The folder contains the checkpoints that a kill after each step would leave."""
    whole = prune(opt, out=tmp_path / "whole")
    for last in range(4):
        out = tmp_path / f"run[{last}]*"  # no pattern
        out.mkdir()
        for step in range(last + 1):
            name = f"step-{step:04d}.safetensors"
            (out / name).write_bytes((tmp_path / "whole" / name).read_bytes())
        run = prune(opt, out=out)
        assert run.mask == whole.mask
        pd.testing.assert_frame_equal(run.history, whole.history, check_exact=True)
        assert (out / "history.csv").read_bytes() == (tmp_path / "whole" / "history.csv").read_bytes()
    longer = prune(opt, out=tmp_path / "whole", steps=5)
    assert longer.steps == 5
    assert longer.mask == prune(opt, steps=5).mask
    assert prune(opt, out=tmp_path / "whole", steps=2).steps == 2
    loaded = sp.PruneRun.load(tmp_path / "whole")
    assert loaded.mask == longer.mask
    assert sp.NeuronMask.load(tmp_path / "whole" / "mask.safetensors").count() == whole.mask_at(2).count()


def test_ctrl_c_keeps_the_finished_steps(opt: Any, tmp_path: Path) -> None:
    whole = prune(opt)
    passes: list[int] = []

    def interrupt(*_: Any) -> None:
        passes.append(1)
        if len(passes) == stop:
            raise KeyboardInterrupt

    handle = opt.blocks[0].register_forward_pre_hook(interrupt)
    try:
        stop = -1
        prune(opt)
        stop, passes_of_run = len(passes) - 1, len(passes)  # within the last step
        passes.clear()
        with pytest.raises(sp.PruneInterrupted, match=r"Interrupted after 2 steps\. .* `sys.last_value.run`") as error:
            prune(opt)
        assert error.value.run.steps == 2
        assert error.value.run.mask == whole.mask_at(2)
        passes.clear()
        with pytest.raises(KeyboardInterrupt, match="from where the same call resumes"):
            prune(opt, out=tmp_path)
        passes.clear()
        stop = -1
        assert prune(opt, out=tmp_path).mask == whole.mask
        assert len(passes) < passes_of_run / 2
    finally:
        handle.remove()


def test_a_longer_run_is_cut_to_fewer_steps(opt: Any, tmp_path: Path) -> None:
    """The additional steps are not in the mask, the history, or the files derived from them."""
    prune(opt, out=tmp_path)
    cut, separate = prune(opt, out=tmp_path, steps=1), prune(opt, steps=1)
    assert cut.mask == separate.mask
    assert cut.records == separate.records
    assert sp.NeuronMask.load(tmp_path / "mask.safetensors") == separate.mask


_KILLED = """
import sys
sys.path[:0] = {folders!r}
from factories import tiny_bridge
from test_prune import prune
prune(tiny_bridge("opt"), steps=8, fraction=0.05, out={out!r})
"""


@pytest.mark.parametrize("after", [0, 3])
def test_a_killed_run_resumes_to_the_same_result(opt: Any, tmp_path: Path, after: int) -> None:
    out = tmp_path / "run"
    folders = [str(folder) for folder in Path(__file__).parents[:2]]
    script = _KILLED.format(folders=folders, out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script])
    while process.poll() is None and not (out / f"step-{after:04d}.safetensors").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(list(out.glob("step-*.safetensors")))
    run = prune(opt, steps=8, fraction=0.05, out=out)
    whole = prune(opt, steps=8, fraction=0.05)
    assert after < finished <= 9
    assert run.mask == whole.mask
    pd.testing.assert_frame_equal(run.history, whole.history, check_exact=True)


def test_a_folder_with_other_settings_raises(opt: Any, tmp_path: Path) -> None:
    prune(opt, out=tmp_path, steps=1)
    for other, message in (
        ({"metric": "std"}, "metric is 'abs' there and 'std' in this call"),
        ({"fraction": 0.2}, "fraction"),
        ({"eps": 1.0}, "eps"),
    ):
        with pytest.raises(sp.SpLensError, match=message):
            prune(opt, out=tmp_path, steps=2, **other)
    with pytest.raises(sp.SpLensError, match="weights is"):
        prune(tiny_bridge("opt", seed=9), out=tmp_path, steps=2)
    with pytest.raises(sp.SpLensError, match="corpora"):
        prune(opt, out=tmp_path, steps=2, forget=random_rows(3, seed=77))
    assert prune(opt, out=tmp_path, steps=2).steps == 2  # the run is still there


def test_pruning_a_neuron_of_an_attention_sink_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A neuron fires strongly at the first token of each row only."""
    model = tiny_bridge("opt")
    name = "blocks.1.mlp.hook_post"

    def fire_at_the_first_token(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        activation = activation.clone()
        activation[..., 7] = 0.1
        activation[:, 0, 7] = 30.0
        return activation

    model.add_hook(name, fire_at_the_first_token)
    sinks = sp.collect(model, corpora().retain, progress=False).sinks()
    assert sinks == sp.NeuronMask.from_neurons(sp.layout_of(model), {name: [7]})
    prune(model, fraction=0.9, steps=1, protect=sinks)
    assert not caplog.records
    prune(model, fraction=0.9, steps=1)
    assert "Step 1 prunes 1 neurons with their strongest activation at the BOS token" in caplog.text


def test_protected_neurons_are_not_pruned(opt: Any, tmp_path: Path) -> None:
    groups = sp.layout_of(opt).select("mlp")
    first = prune(opt, steps=1, out=tmp_path).mask
    run = prune(opt, steps=9, protect=first)  # prunes 90 %, all but the protected 10 %
    assert run.mask == sp.NeuronMask(groups, {name: ~mask for name, mask in first.items()})
    whole = sp.NeuronMask(sp.layout_of(opt), {**random_mask(opt, 0), **first})  # of both sites
    assert prune(opt, steps=9, protect=whole).mask == run.mask
    assert not any((first[name] & mask).any() for name, mask in prune(opt, metric="random", protect=first).mask.items())
    with pytest.raises(sp.SpLensError, match="protected is None there"):
        prune(opt, steps=2, out=tmp_path, protect=first)
    with pytest.raises(sp.SpLensError, match="leave nothing to prune after step 9"):
        prune(opt, steps=10, protect=first)


def test_a_head_with_a_protected_neuron_is_not_pruned(opt: Any) -> None:
    name = "blocks.1.attn.hook_z"
    protect = sp.NeuronMask.from_neurons(sp.layout_of(opt), {name: [9]})  # in head 1; a head has 8 neurons
    run = prune(opt, site="attn", unit="head", fraction=1 / 8, steps=7, protect=protect)
    assert (~run.mask[name]).nonzero().flatten().tolist() == list(range(8, 16))
    assert run.mask["blocks.0.attn.hook_z"].all()


INVALID: list[tuple[str, dict[str, Any]]] = [
    ("unknown site 'ffn': choose one of 'mlp', 'attn', 'both'", {"site": "ffn"}),
    ("unknown metric 'l1'", {"metric": "l1"}),
    ("unknown unit 'layer'", {"unit": "layer"}),
    ("unknown aggregate", {"aggregate": "product"}),
    ('unit="head" needs site="attn"', {"unit": "head"}),
    ("selects none: give at least", {"fraction": 1e-6}),
    ("above 0 and at most 1", {"fraction": 0.0}),
    ("above 0 and at most 1", {"fraction": 1.5}),
    ("leave nothing to prune after step 2", {"fraction": 0.5}),
    ("steps=0: expected a number above 0", {"steps": 0}),
    ("the mask to protect", {"protect": random_mask(tiny_bridge("gpt2"), 0.1)}),
    ("expected numbers of 0 or more", {"eps": -1.0}),
]


@pytest.mark.parametrize(("message", "options"), INVALID, ids=[message for message, _ in INVALID])
def test_invalid_options_raise_before_any_forward_pass(opt: Any, message: str, options: dict[str, Any]) -> None:
    calls: list[int] = []
    handle = opt.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(sp.SpLensError, match=message):
        prune(opt, **options)
    handle.remove()
    assert not calls


def test_overlapping_evaluation_text_raises(opt: Any) -> None:
    text = dict(corpora())
    text["eval_retain"] = [*text["eval_retain"], torch.arange(2, 40)]
    text["forget"] = [*text["forget"], torch.arange(2, 40)]
    with pytest.raises(sp.SpLensError, match="eval_retain has 1 rows that are in forget too"):
        sp.prune(opt, **text, steps=1)


def test_a_mask_at_a_step_beyond_the_last_raises(opt: Any) -> None:
    with pytest.raises(sp.SpLensError, match="has no step 4: expected a step from 0 to 3"):
        prune(opt).mask_at(4)


def test_the_mask_of_a_run_records_the_model(opt: Any) -> None:
    assert prune(opt).mask.about["model"] == "tiny-opt"
    assert random_mask(opt, 0.1).about == {}


def test_the_configuration_has_the_defaults_of_prune() -> None:
    parameters = inspect.signature(sp.prune).parameters
    config = PruneConfig()
    assert {field.name: getattr(config, field.name) for field in fields(config)} == {
        field.name: parameters[field.name].default for field in fields(config)
    }

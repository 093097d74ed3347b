"""Algorithm 1, against the same algorithm written out on plain transformers; and runs that are killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from factories import Tiny, plain_activations, random_mask, random_rows, tiny_bridge, tiny_hf, zero_rows

import sp_lens as sp

pytestmark = pytest.mark.model


def corpora() -> dict[str, Any]:
    """Forget and retain text that differ: the lower and the upper half of the vocabulary."""
    found = {}
    for seed, name in enumerate(("forget", "retain", "eval_forget", "eval_retain")):
        rows = random_rows(8, seed=seed)
        found[name] = [row % 2000 + (2048 if "retain" in name else 2) for row in rows]
    return found


def prune(model: Any, **options: Any) -> sp.PruneRun:
    settings: dict[str, Any] = {"steps": 3, "fraction": 0.1, "progress": False}
    return sp.prune(model, **(corpora() | settings | options))


def test_algorithm_1_written_out_on_plain_transformers(tiny: Tiny) -> None:
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
        for place, name in enumerate(layout.names):
            forget, retain = (side[name].square().mean(0).sqrt() for side in sides)
            for neuron, value in enumerate((forget / (retain + 1e-3)).tolist()):
                if (name, neuron) not in pruned:
                    scores.append((-value, place, neuron, name))
        pruned += [(name, neuron) for _, _, neuron, name in sorted(scores)[:per_step]]
        found = {(name, int(n)) for name, mask in run.mask_at(step).items() for n in mask.nonzero()}
        assert found == set(pruned)
    assert run.history["share"].tolist() == [pytest.approx(step * per_step / layout.neurons) for step in range(4)]


def test_history_is_what_evaluating_the_masks_gives(opt: Any) -> None:
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
    assert run.selectivity == drops.max()


def test_one_shot_goes_down_one_ranking(opt: Any) -> None:
    run = prune(opt, recollect=False, site="attn")
    text = corpora()
    stats = [sp.collect(opt, text[side], progress=False) for side in ("forget", "retain")]
    scores = sp.score(*stats, metric="abs")
    for step in (1, 2, 3):
        best = scores.top(step * 0.1, site="attn")
        # 0.1 of 64 neurons is 6 a step: three steps are 18, and 0.3 of 64 is 19.
        assert all((run.mask_at(step)[name] <= best[name]).all() for name in run.mask)


def test_whole_heads(opt: Any) -> None:
    run = prune(opt, site="attn", unit="head", fraction=0.25, steps=2)
    for mask in run.mask.values():
        by_head = mask.view(4, 8)
        assert torch.equal(by_head.all(1), by_head.any(1))
    assert run.mask.count() == 4 * 8
    stats = [sp.collect(opt, corpora()[side], progress=False) for side in ("forget", "retain")]
    heads = sp.score(*(side.importance("abs").heads("mean") for side in stats))
    assert heads.top(0.25) == run.mask_at(1)


def test_random_is_seeded_and_collects_nothing(opt: Any) -> None:
    one, again, other = (prune(opt, metric="random", seed=seed) for seed in (1, 1, 2))
    assert one.mask == again.mask
    assert one.mask != other.mask
    heads = prune(opt, metric="random", site="attn", unit="head", fraction=0.25, steps=2)
    assert heads.mask.count() == 4 * 8


def test_two_runs_give_one_mask_and_history(opt: Any) -> None:
    one, two = prune(opt), prune(opt)
    assert one.mask == two.mask
    pd.testing.assert_frame_equal(one.history, two.history, check_exact=True)


def test_stopping_rules(opt: Any) -> None:
    assert prune(opt, min_retain_top1=1.1).steps == 0
    assert prune(opt, max_forget_top1=1.0).steps == 0
    assert prune(opt, min_retain_top1=0.0, max_forget_top1=-1.0).steps == 3


def test_the_model_is_left_as_it_was(opt: Any) -> None:
    before = opt(torch.arange(2, 20)[None])
    prune(opt)
    assert torch.equal(opt(torch.arange(2, 20)[None]), before)


def test_a_run_goes_on_from_any_step(opt: Any, tmp_path: Path) -> None:
    """Files as a kill after each step would leave them, and the same call again."""
    whole = prune(opt, out=tmp_path / "whole")
    for last in range(4):
        out = tmp_path / str(last)
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


def test_ctrl_c_keeps_the_steps_that_were_done(opt: Any, tmp_path: Path) -> None:
    whole = prune(opt)
    passes: list[int] = []

    def presses(*_: Any) -> None:
        passes.append(1)
        if len(passes) == stop:
            raise KeyboardInterrupt

    handle = opt.blocks[0].register_forward_pre_hook(presses)
    try:
        stop = -1
        prune(opt)
        stop, each = len(passes) - 1, len(passes)  # within the last step
        passes.clear()
        with pytest.raises(sp.PruneInterrupted, match=r"2 steps were done: `sys.last_value.run` has them") as stopped:
            prune(opt)
        assert stopped.value.run.steps == 2
        assert stopped.value.run.mask == whole.mask_at(2)
        passes.clear()
        with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
            prune(opt, out=tmp_path)
        passes.clear()
        stop = -1
        assert prune(opt, out=tmp_path).mask == whole.mask
        assert len(passes) < each / 2
    finally:
        handle.remove()


def test_a_run_that_went_further_is_read_as_it_was(opt: Any, tmp_path: Path) -> None:
    """Of the steps beyond those asked for nothing is left: not in the mask, the history, nor the files made of it."""
    prune(opt, out=tmp_path)
    one, alone = prune(opt, out=tmp_path, steps=1), prune(opt, steps=1)
    assert one.mask == alone.mask
    assert one.records == alone.records
    assert sp.NeuronMask.load(tmp_path / "mask.safetensors") == alone.mask


_KILLED = """
import sys
sys.path.insert(0, {tests!r})
from factories import tiny_bridge
from test_prune import prune
prune(tiny_bridge("opt"), steps=8, fraction=0.05, out={out!r})
"""


@pytest.mark.parametrize("after", [0, 3])
def test_a_killed_process_goes_on_to_the_same_end(opt: Any, tmp_path: Path, after: int) -> None:
    out = tmp_path / "run"
    script = _KILLED.format(tests=str(Path(__file__).parent), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script])
    while process.poll() is None and not (out / f"step-{after:04d}.safetensors").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(out.glob("step-*.safetensors")))
    run = prune(opt, steps=8, fraction=0.05, out=out)
    whole = prune(opt, steps=8, fraction=0.05)
    assert 1 <= done <= 9
    assert run.mask == whole.mask
    pd.testing.assert_frame_equal(run.history, whole.history, check_exact=True)


def test_a_run_folder_of_another_configuration(opt: Any, tmp_path: Path) -> None:
    prune(opt, out=tmp_path, steps=1)
    for other, message in (
        ({"metric": "std"}, "its metric is 'abs', and 'std' was asked for"),
        ({"fraction": 0.2}, "fraction"),
        ({"eps": 1.0}, "eps"),
    ):
        with pytest.raises(sp.SpLensError, match=message):
            prune(opt, out=tmp_path, steps=2, **other)
    with pytest.raises(sp.SpLensError, match="its weights is"):
        prune(tiny_bridge("opt", seed=9), out=tmp_path, steps=2)
    with pytest.raises(sp.SpLensError, match="corpora"):
        prune(opt, out=tmp_path, steps=2, forget=random_rows(3, seed=77))
    assert prune(opt, out=tmp_path, steps=2).steps == 2  # nothing was lost


def test_protected_neurons_stay(opt: Any, tmp_path: Path) -> None:
    groups = sp.layout_of(opt).select("mlp")
    first = prune(opt, steps=1, out=tmp_path).mask
    run = prune(opt, steps=9, protect=first)  # nine of ten, and the tenth is protected
    assert run.mask == sp.NeuronMask(groups, {name: ~mask for name, mask in first.items()})
    whole = sp.NeuronMask(sp.layout_of(opt), {**random_mask(opt, 0), **first})  # of both sites
    assert prune(opt, steps=9, protect=whole).mask == run.mask
    assert not any((first[name] & mask).any() for name, mask in prune(opt, metric="random", protect=first).mask.items())
    with pytest.raises(sp.SpLensError, match="its protected is None"):
        prune(opt, steps=2, out=tmp_path, protect=first)
    with pytest.raises(sp.SpLensError, match="leave nothing to prune after step 9"):
        prune(opt, steps=10, protect=first)


def test_a_head_with_a_protected_neuron_stays_whole(opt: Any) -> None:
    name = "blocks.1.attn.hook_z"
    protect = sp.NeuronMask.from_neurons(sp.layout_of(opt), {name: [9]})  # of head 1, each of 8 neurons
    run = prune(opt, site="attn", unit="head", fraction=1 / 8, steps=7, protect=protect)
    assert (~run.mask[name]).nonzero().flatten().tolist() == list(range(8, 16))
    assert run.mask["blocks.0.attn.hook_z"].all()


BAD: list[tuple[str, dict[str, Any]]] = [
    ("unknown site 'ffn': choose one of 'mlp', 'attn', 'both'", {"site": "ffn"}),
    ("unknown metric 'l1'", {"metric": "l1"}),
    ("unknown unit 'layer'", {"unit": "layer"}),
    ("unknown aggregate", {"aggregate": "product"}),
    ('whole heads are of the attention: say site="attn"', {"unit": "head"}),
    ("selects none: give at least", {"fraction": 1e-6}),
    ("above 0 and at most 1", {"fraction": 0.0}),
    ("above 0 and at most 1", {"fraction": 1.5}),
    ("leave nothing to prune after step 2", {"fraction": 0.5}),
    ("expected at least one", {"steps": 0}),
    ("the mask to protect", {"protect": random_mask(tiny_bridge("gpt2"), 0.1)}),
    ("expected numbers of 0 or more", {"eps": -1.0}),
]


@pytest.mark.parametrize(("message", "options"), BAD, ids=[message for message, _ in BAD])
def test_bad_settings_are_refused_before_any_work(opt: Any, message: str, options: dict[str, Any]) -> None:
    calls: list[int] = []
    handle = opt.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(sp.SpLensError, match=message):
        prune(opt, **options)
    handle.remove()
    assert not calls


def test_held_out_text_must_be_held_out(opt: Any) -> None:
    text = corpora()
    text["eval_retain"] = [*text["eval_retain"], torch.arange(2, 40)]
    text["forget"] = [*text["forget"], torch.arange(2, 40)]
    with pytest.raises(sp.SpLensError, match="eval_retain has 1 rows that are in forget too"):
        sp.prune(opt, **text, steps=1)


def test_steps_that_were_not_done(opt: Any) -> None:
    with pytest.raises(sp.SpLensError, match="step 4 was not done"):
        prune(opt).mask_at(4)


def test_a_mask_of_a_run_remembers_its_model(opt: Any) -> None:
    assert prune(opt).mask.about["model"] == "tiny-opt"
    assert random_mask(opt, 0.1).about == {}

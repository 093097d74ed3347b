"""Statistics over all token positions, compared with activations of plain transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import Tiny, padded, plain_activations, random_rows, tiny_bridge, tiny_hf

import sp_lens as sp

pytestmark = pytest.mark.model

EVERY = slice(None)
BOS = torch.tensor([1])


def collect(model: Any, corpus: Any, positions: Any = "all", **options: Any) -> sp.ActivationStats:
    return sp.collect(model, corpus, positions=positions, progress=False, **options)


def require_statistics_of(stats: sp.ActivationStats, activations: dict[str, torch.Tensor]) -> None:
    assert set(stats) == set(activations)
    for name, z in activations.items():
        moments = stats[name]
        assert moments.count == len(z)
        for values, expected in (
            (moments.freq(), (z > 0).double().mean(0)),
            (moments.abs(), z.abs().mean(0)),
            (moments.rms(), z.square().mean(0).sqrt()),
            (moments.std(), (z - z.mean(0)).square().mean(0).sqrt()),
            (moments.max, z.amax(0)),
        ):
            torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_all_positions_but_padding_are_counted(tiny: Tiny, side: str, bos: bool) -> None:
    """The padding id is also that of BOS, so only the attention mask tells them apart."""
    rows = [torch.cat([BOS, row]) if bos else row for row in random_rows(12)]
    stats = collect(tiny.model, [padded(rows, side, pad_id=1)])
    assert stats.count == sum(map(len, rows))
    require_statistics_of(stats, plain_activations(tiny.family, tiny.hf, rows, positions=EVERY))
    # The peak is still that of the tokens which positions="text" does not count.
    first = plain_activations(tiny.family, tiny.hf, rows, positions=slice(2 if bos else 1))
    for name, z in first.items():
        torch.testing.assert_close(stats[name].uncounted_peak, z.abs().amax(0), rtol=1e-5, atol=1e-6)


def test_rows_without_context_are_counted(opt: Any) -> None:
    rows = [torch.tensor([1, 7]), torch.tensor([1, 1, 9])]
    require_statistics_of(collect(opt, rows), plain_activations("opt", tiny_hf("opt"), rows, positions=EVERY))
    with pytest.raises(sp.SpLensError, match="no token of the corpus counts"):
        collect(opt, rows, "text")


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_the_class_token_of_an_image_is_counted(batch_tokens: int) -> None:
    model, pixels = tiny_bridge("vit"), torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images = {"pixel_values": pixels, "labels": torch.arange(3)}
    for positions, counted in (("text", slice(1, None)), ("all", EVERY)):
        expected = plain_activations("vit", tiny_hf("vit"), list(pixels), positions=counted)
        require_statistics_of(collect(model, images, positions, batch_tokens=batch_tokens), expected)


def test_folds_and_histograms_have_the_same_positions(opt: Any) -> None:
    rows = [torch.cat([BOS, row]) for row in random_rows(10)]
    stats = collect(opt, rows, folds=5, batch_tokens=60)
    hf = tiny_hf("opt")
    for number, fold in enumerate(stats.folds):
        require_statistics_of(fold, plain_activations("opt", hf, rows[number::5], positions=EVERY))
    options: dict[str, Any] = {"site": "mlp", "positions": "all", "progress": False}
    for each in sp.collect_histograms(opt, {"a": rows, "b": rows[:3]}, **options).values():
        histogram: Any = each["blocks.0.mlp.hook_post"].histogram
        assert not histogram.outside.any()
        assert (histogram.counts.sum(dim=1) == each.count).all()


def test_statistics_of_different_positions_are_not_mixed(opt: Any, tmp_path: Path) -> None:
    rows = random_rows(4)
    every, text = collect(opt, rows), collect(opt, rows, "text")
    every.save(tmp_path / "all.safetensors")
    message = r"different token positions, \['all', 'text'\]"
    for stats in (every, sp.ActivationStats.load(tmp_path / "all.safetensors")):
        with pytest.raises(sp.SpLensError, match=message):
            sp.score(stats, text)
        with pytest.raises(sp.SpLensError, match=message):
            text.merge(stats)
        with pytest.raises(sp.SpLensError, match=message):
            sp.specialisation({"first": stats, "second": text})
        assert sp.score(stats, every).about["positions"] == "all"
    with pytest.raises(sp.SpLensError, match="differ in their positions: 'all' for forget and 'text' for retain"):
        sp.score(every.importance("abs"), text.importance("abs"))
    _, cache = opt.run_with_cache(rows[0][None])
    assert sp.score(every, sp.ActivationStats.from_cache(cache)).about["positions"] == "all"  # the cache's are unknown


def test_sinks_are_not_found_in_statistics_that_count_them(opt: Any) -> None:
    with pytest.raises(sp.SpLensError, match="positions='text'"):
        collect(opt, random_rows(2)).sinks()


def test_unknown_positions_raise_an_error(opt: Any) -> None:
    with pytest.raises(sp.SpLensError, match="unknown positions 'patches': choose one of 'text', 'all'"):
        collect(opt, random_rows(2), "patches")
    positions: Any = "patches"
    with pytest.raises(sp.SpLensError, match="unknown positions 'patches'"):
        sp.collect_histograms(opt, {"a": random_rows(2)}, site="mlp", positions=positions, progress=False)

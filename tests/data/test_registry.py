"""Named corpora of text: small datasets that are laid out as the Hub's are, and files as those of `SP_LENS_DATA`."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Value

import sp_lens as sp
from sp_lens.data.local_tables import clean_tweet
from sp_lens.data.offline import OFFLINE, Document, read_offline, split_of_tweet
from sp_lens.data.registry import CORPORA, HUB, read_text
from sp_lens.typing import SPLITS, Split

PARTS = ("Github", "Pile-CC", "ArXiv")
LANGUAGES = ("Python", "C", "Java", "Python")


def position(name: str) -> Split:
    """Which split a name belongs to, computed anew: 60, 20, 20 %, by its hash."""
    place = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64
    return "train" if place < 0.6 else "collect" if place < 0.8 else "evaluate"


def texts(name: str, split: Split) -> list[str]:
    return [document.text for document in read_text(name, split, offline=False)[0]]


def numbered(count: int) -> list[str]:
    return [f"This is text number {number}, and it says that it is number {number}." for number in range(count)]


def minipile(folder: Path) -> list[dict[str, Any]]:
    rows = [{"text": text, "meta": {"pile_set_name": PARTS[n % 3]}} for n, text in enumerate(numbered(150))]
    Dataset.from_list(rows).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return rows


def github_code(folder: Path) -> list[dict[str, Any]]:
    """In two files, beside the loading script that the real one has."""
    rows = [
        {"code": text, "repo_name": "a/b", "path": f"{n}.x", "language": LANGUAGES[n % 4], "license": "mit", "size": n}
        for n, text in enumerate(numbered(160))
    ]
    for half, some in enumerate((rows[:80], rows[80:])):
        Dataset.from_list(some).to_parquet(folder / "data" / f"train-0000{half}-of-00880.parquet")
    (folder / f"{folder.name}.py").write_text("raise SystemExit('scripts are not run')")
    return rows


def civil_comments(folder: Path) -> list[dict[str, Any]]:
    """With toxicities in float32, as they are kept, at the very thresholds too."""
    shares = [0.0, 0.2, 0.2000001 + 0.0001, 0.5, 0.7999, 0.8, 1.0]
    rows = [{"text": text, "toxicity": shares[n % 7], "insult": 0.0} for n, text in enumerate(numbered(210))]
    features = Features({"text": Value("string"), "toxicity": Value("float32"), "insult": Value("float32")})
    Dataset.from_list(rows, features=features).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    for split in ("validation", "test"):  # which are not read
        other = [{"text": f"{split} {row['text']}", "toxicity": row["toxicity"], "insult": 0.0} for row in rows]
        Dataset.from_list(other, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return rows


def not_github(row: dict[str, Any]) -> bool:
    return row["meta"]["pile_set_name"] in ("Pile-CC", "ArXiv")


# By name: who lays the dataset out, where its text is, and which of its rows belong to the corpus.
LAID_OUT: dict[str, tuple[Callable[[Path], list[dict[str, Any]]], str, Callable[[dict[str, Any]], Any]]] = {
    "pile": (minipile, "text", lambda row: True),
    "pile_codeless": (minipile, "text", not_github),
    "prose": (minipile, "text", not_github),
    "code": (github_code, "code", lambda row: True),
    "python": (github_code, "code", lambda row: row["language"] == "Python"),
    "non_python": (github_code, "code", lambda row: row["language"] in ("C", "Java")),
    "civil": (civil_comments, "text", lambda row: np.float32(row["toxicity"]) <= np.float32(0.2)),
    "toxic": (civil_comments, "text", lambda row: np.float32(row["toxicity"]) >= np.float32(0.8)),
}


@pytest.mark.parametrize("name", LAID_OUT)
def test_of_the_hub_is_read_what_belongs_to_the_corpus_and_the_split(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, column, kept = LAID_OUT[name]
    rows = build(tmp_path)
    assert {bool(kept(row)) for row in rows} == ({True} if name in ("pile", "code") else {True, False})
    place = {"repository": str(tmp_path)}
    if HUB[name].files:
        place["files"] = str(tmp_path / "data" / "*.parquet")
    monkeypatch.setitem(HUB, name, HUB[name]._replace(**place))
    for split in SPLITS:
        expected = [row[column] for row in rows if kept(row) and position(row[column]) == split]
        assert texts(name, split) == expected
        assert expected


def hub_wikitext(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "wikitext-103-v1") -> None:
    """Three splits of two articles each, line by line as on the Hub, in one of two configurations."""
    listed = []
    for split in ("train", "validation", "test"):
        lines: list[str] = []
        for title in ("First <unk>", "Second ( album )"):
            lines += [" \n", f" = {title} = \n", " \n", f" A line of {split} . \n", " = = Its part = = \n", " \n"]
            lines += [f" {title} is {number} @,@ 000 in {split} . \n" for number in range(300)]
        Dataset.from_dict({"text": ["", *lines]}).to_parquet(folder / name / f"{split}-00000-of-00001.parquet")
        listed.append(f"  - split: {split}\n    path: {name}/{split}-*")
    Dataset.from_dict({"text": ["raw"]}).to_parquet(folder / "raw" / "train-00000-of-00001.parquet")
    files = "\n".join(listed)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: raw\n  data_files:\n  - split: train\n    path: raw/train-*\n"
        f"- config_name: {name}\n  data_files:\n{files}\n---\n"
    )
    monkeypatch.setitem(HUB, "wikitext", HUB["wikitext"]._replace(repository=str(folder)))


def test_wikitext_is_whole_articles_in_the_splits_that_it_was_published_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_wikitext(tmp_path, monkeypatch)
    names = {}
    published: dict[Split, str] = {"train": "train", "collect": "validation", "evaluate": "test"}
    for split, theirs in published.items():
        found = list(read_text("wikitext", split, offline=False)[0])
        articles: dict[str, str] = {}
        for document in found:
            assert len(document.text) <= 3000
            articles[document.name] = articles.get(document.name, "") + document.text
        assert len(articles) == 2 < len(found)
        for text, title in zip(articles.values(), ("First <unk>", "Second ( album )"), strict=True):
            expected = [f"= {title} =", f"A line of {theirs} .", "= = Its part = ="]
            assert text.split("\n") == expected + [f"{title} is {n} @,@ 000 in {theirs} ." for n in range(300)]
        names[split] = set(articles)
    assert len(set.union(*names.values())) == 6


@pytest.mark.model
def test_the_record_says_where_the_text_is_from(demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    civil_comments(tmp_path)
    monkeypatch.setitem(HUB, "toxic", HUB["toxic"]._replace(repository=str(tmp_path)))
    about = json.loads(sp.load_corpus("toxic", demo, tokens=100).info.description)
    assert {key: about[key] for key in ("source", "offline", "origin", "tokens")} == {
        "source": "toxic",
        "offline": False,
        "origin": str(tmp_path),
        "tokens": 100,
    }
    about = json.loads(sp.load_corpus("pile_codeless", demo, tokens=100, offline=True).info.description)
    assert about["offline"] is True
    assert about["origin"].startswith("sentences of the docstrings")
    own = json.loads(sp.load_corpus(["a few words of mine"], demo, tokens=None, offline=True).info.description)
    assert own["offline"] is False
    assert "origin" not in own


@pytest.mark.model
@pytest.mark.parametrize("name", HUB)
def test_nothing_stands_in_silently(name: str, demo: Any) -> None:
    """Where the Hub can't be reached, as here: an error, which says what to type if there is anything to type."""
    offered = rf"in its place, .*, say load_corpus\('{name}', model, offline=True\) or --offline"
    nothing = "There is no offline text for 'pile': choose one of"
    with pytest.raises(sp.SpLensError, match=f"cannot read {HUB[name].repository} from the Hugging Face Hub") as error:
        sp.load_corpus(name, demo, tokens=100)
    assert error.match(nothing if name == "pile" else offered)


def test_a_stream_that_breaks_off_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    github_code(tmp_path)
    (tmp_path / "data" / "train-00001-of-00880.parquet").write_bytes(b"PAR1 half a file")
    place = {"repository": "some/code", "files": str(tmp_path / "data" / "*.parquet")}
    monkeypatch.setitem(HUB, "code", HUB["code"]._replace(**place))
    documents = read_text("code", "train", offline=False)[0]
    assert next(documents).text.startswith("This is text")
    with pytest.raises(sp.SpLensError, match="cannot read some/code"):
        list(documents)


def here(name: str) -> dict[Split, list[Document]]:
    return {split: list(read_offline(name, split)) for split in SPLITS}


@pytest.fixture
def tweets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """60 tweets of each label, with their retweets; what they say is their last two words."""
    said = [
        (f"{word} {number}", label)
        for label, word in (("hate", "awful"), ("offensive", "rude"), ("neither", "kind"))
        for number in range(60)
    ]
    rows = [(f"Look &amp; see https://t.co/x{n} {text}", label) for n, (text, label) in enumerate(said)]
    rows += [(f"!!! RT @user_{n}: Look &amp; see: {text}", label) for n, (text, label) in enumerate(said)]
    rows += [("I am both ones", "neither"), ("RT @x I am BOTH ones!", "hate"), ("@only @names http://t.co/x", "hate")]
    table = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    Dataset.from_dict(table).to_parquet(tmp_path / "tweets-offensive.parquet")
    monkeypatch.setenv("SP_LENS_DATA", str(tmp_path))
    return said


def test_tweets_stand_in_for_comments_of_the_same_genre(tweets: list[tuple[str, str]]) -> None:
    for name, labels in (("toxic", ("hate", "offensive")), ("civil", ("neither",))):
        found = [document.text for documents in here(name).values() for document in documents]
        # Each tweet once, its retweet being the same; no name, no link, no HTML; none of both labels, none empty.
        assert sorted(found) == sorted(f"Look & see {text}" for text, label in tweets if label in labels)


def test_tweets_and_retweets_are_of_one_split(tweets: list[tuple[str, str]], tmp_path: Path) -> None:
    before = {document.name: split for split, documents in here("toxic").items() for document in documents}
    table = Dataset.from_parquet(str(tmp_path / "tweets-offensive.parquet"))
    table.select(range(180, len(table))).to_parquet(tmp_path / "tweets-offensive.parquet")  # the retweets alone
    after = {document.name: split for split, documents in here("toxic").items() for document in documents}
    assert after == before
    assert set(after.values()) == set(SPLITS)
    assert all(position(name) == split for name, split in after.items())


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def check_tweet_splits(raw: list[str]) -> None:
    """Check that no tweet of the split train is in another split of the offline corpora, by its cleaned words."""
    train = {words(clean_tweet(text)) for text in raw if split_of_tweet(text) == "train"}
    for name in ("civil", "toxic"):
        by_split = {split: {words(document.text) for document in documents} for split, documents in here(name).items()}
        assert all(by_split.values())
        assert by_split["train"] <= train
        assert not train & (by_split["collect"] | by_split["evaluate"])


@pytest.mark.usefixtures("tweets")
def test_tweets_of_the_train_split_are_in_no_other_split(tmp_path: Path) -> None:
    check_tweet_splits(Dataset.from_parquet(str(tmp_path / "tweets-offensive.parquet"))["text"][:])


@pytest.mark.skipif("SP_LENS_DATA" not in os.environ, reason="the tweets are in the folder that SP_LENS_DATA names")
def test_labelled_tweets_of_the_train_split_are_in_no_other_split() -> None:
    check_tweet_splits(Dataset.from_parquet(f"{os.environ['SP_LENS_DATA']}/tweets-offensive.parquet")["text"][:])


def test_wikitext_has_no_training_articles_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, title in (("valid", "A valley"), ("test", "A tower")):
        lines = [f"= {title} =", "It is old .", "= = Age = =", "Very .", f"= {title} , again =", "So old ."]
        Dataset.from_dict({"text": lines}).to_parquet(tmp_path / f"wikitext2-{split}.parquet")
    monkeypatch.setenv("SP_LENS_DATA", str(tmp_path))
    titles: dict[Split, str] = {"collect": "A valley", "evaluate": "A tower"}
    for split, title in titles.items():
        first, second = read_offline("wikitext", split)
        assert first.text == f"= {title} =\nIt is old .\n= = Age = =\nVery ."
        assert second.text == f"= {title} , again =\nSo old ."
    with pytest.raises(sp.SpLensError, match="'wikitext' has no split 'train': choose 'collect'"):
        read_offline("wikitext", "train")


def test_toxic_comments_are_read_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comments = [*numbered(50), numbered(1)[0].upper()]
    Dataset.from_dict({"comment_id": range(51), "text": comments}).to_parquet(tmp_path / "civil-comments-toxic.parquet")
    monkeypatch.setenv("SP_LENS_DATA", str(tmp_path))
    assert sorted(d.text for documents in here("toxic_comments").values() for d in documents) == sorted(numbered(50))


@pytest.mark.parametrize("name", ["civil", "toxic", "wikitext", "novels", "toxic_comments"])
def test_a_folder_without_the_text_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SP_LENS_DATA", str(tmp_path))
    with pytest.raises(sp.SpLensError, match=r"there is no file .*\.parquet: set SP_LENS_DATA to a folder that has it"):
        read_offline(name, "collect")


def test_every_name_can_be_read_somewhere_and_says_what_it_is() -> None:
    assert set(CORPORA) == set(HUB) | set(OFFLINE)
    assert set(HUB) - set(OFFLINE) == {"pile"}
    assert set(OFFLINE) - set(HUB) == {"novels", "toxic_comments"}
    assert all(source.origin for source in OFFLINE.values())

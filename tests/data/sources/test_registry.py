"""Named text corpora, read from small datasets with the layout of the Hub and from files as in `SP_LENS_DATA`."""

import hashlib
import itertools
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
from sp_lens.data.sources import registry
from sp_lens.data.sources.local_tables import clean_tweet
from sp_lens.data.sources.offline import OFFLINE, read_offline, split_of_tweet
from sp_lens.data.sources.registry import CORPORA, HUB, read_text
from sp_lens.data.sources.tables import Document
from sp_lens.typing import SPLITS, Split

PARTS = ("Github", "Pile-CC", "ArXiv")
LANGUAGES = ("Python", "C", "Java", "Python")


def hashed_split(name: str) -> Split:
    """Return the split of a name, computed independently: 60, 20 and 20 %, by its hash."""
    position = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64
    return "train" if position < 0.6 else "collect" if position < 0.8 else "evaluate"


def texts(name: str, split: Split) -> list[str]:
    return [document.text for document in read_text(name, split, offline=False)[0]]


def numbered(count: int) -> list[str]:
    return [f"This is text number {number}, and it says that it is number {number}." for number in range(count)]


def minipile(folder: Path) -> list[dict[str, Any]]:
    rows = [{"text": text, "meta": {"pile_set_name": PARTS[n % 3]}} for n, text in enumerate(numbered(150))]
    Dataset.from_list(rows).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return rows


def github_code(folder: Path) -> list[dict[str, Any]]:
    """Write two files and a loading script, which the repository on the Hub has too."""
    rows = [
        {"code": text, "repo_name": "a/b", "path": f"{n}.x", "language": LANGUAGES[n % 4], "license": "mit", "size": n}
        for n, text in enumerate(numbered(160))
    ]
    for number, part in enumerate((rows[:80], rows[80:])):
        Dataset.from_list(part).to_parquet(folder / "data" / f"train-0000{number}-of-00880.parquet")
    (folder / f"{folder.name}.py").write_text("raise SystemExit('scripts are not run')")
    return rows


def civil_comments(folder: Path) -> list[dict[str, Any]]:
    """Write toxicities in float32, as on the Hub, some of them equal to the thresholds."""
    shares = [0.0, 0.2, 0.2000001 + 0.0001, 0.5, 0.7999, 0.8, 1.0]
    rows = [{"text": text, "toxicity": shares[n % 7], "insult": 0.0} for n, text in enumerate(numbered(210))]
    features = Features({"text": Value("string"), "toxicity": Value("float32"), "insult": Value("float32")})
    Dataset.from_list(rows, features=features).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    for split in ("validation", "test"):  # these splits of the Hub are not read
        other = [{"text": f"{split} {row['text']}", "toxicity": row["toxicity"], "insult": 0.0} for row in rows]
        Dataset.from_list(other, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return rows


def not_github(row: dict[str, Any]) -> bool:
    return row["meta"]["pile_set_name"] in ("Pile-CC", "ArXiv")


# By name: function that writes the dataset, its column of text, and whether a row belongs to the corpus.
HUB_LAYOUTS: dict[str, tuple[Callable[[Path], list[dict[str, Any]]], str, Callable[[dict[str, Any]], Any]]] = {
    "pile": (minipile, "text", lambda row: True),
    "pile_codeless": (minipile, "text", not_github),
    "prose": (minipile, "text", not_github),
    "code": (github_code, "code", lambda row: True),
    "python": (github_code, "code", lambda row: row["language"] == "Python"),
    "non_python": (github_code, "code", lambda row: row["language"] in ("C", "Java")),
    "civil": (civil_comments, "text", lambda row: np.float32(row["toxicity"]) <= np.float32(0.2)),
    "toxic": (civil_comments, "text", lambda row: np.float32(row["toxicity"]) >= np.float32(0.8)),
}


@pytest.mark.parametrize("name", HUB_LAYOUTS)
def test_a_corpus_of_the_hub_has_the_texts_that_belong_to_it_and_to_the_split(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, column, kept = HUB_LAYOUTS[name]
    rows = write(tmp_path)
    assert {bool(kept(row)) for row in rows} == ({True} if name in ("pile", "code") else {True, False})
    fields = {"repository": str(tmp_path)}
    if HUB[name].files:
        fields["files"] = str(tmp_path / "data" / "*.parquet")
    monkeypatch.setitem(HUB, name, HUB[name]._replace(**fields))
    for split in SPLITS:
        expected = [row[column] for row in rows if kept(row) and hashed_split(row[column]) == split]
        assert texts(name, split) == expected
        assert expected


def hub_wikitext(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "wikitext-103-v1") -> None:
    """Write three splits of two articles each, a row per line as on the Hub, in one of two configurations."""
    data_files = []
    for split in ("train", "validation", "test"):
        lines: list[str] = []
        for title in ("First <unk>", "Second ( album )"):
            lines += [" \n", f" = {title} = \n", " \n", f" A line of {split} . \n", " = = Its part = = \n", " \n"]
            lines += [f" {title} is {number} @,@ 000 in {split} . \n" for number in range(300)]
        Dataset.from_dict({"text": ["", *lines]}).to_parquet(folder / name / f"{split}-00000-of-00001.parquet")
        data_files.append(f"  - split: {split}\n    path: {name}/{split}-*")
    Dataset.from_dict({"text": ["raw"]}).to_parquet(folder / "raw" / "train-00000-of-00001.parquet")
    files = "\n".join(data_files)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: raw\n  data_files:\n  - split: train\n    path: raw/train-*\n"
        f"- config_name: {name}\n  data_files:\n{files}\n---\n"
    )
    monkeypatch.setitem(HUB, "wikitext", HUB["wikitext"]._replace(repository=str(folder)))


def test_wikitext_is_read_by_article_in_its_published_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_wikitext(tmp_path, monkeypatch)
    names = {}
    published: dict[Split, str] = {"train": "train", "collect": "validation", "evaluate": "test"}
    for split, hub_split in published.items():
        documents = list(read_text("wikitext", split, offline=False)[0])
        articles: dict[str, str] = {}
        for document in documents:
            assert len(document.text) <= 3000
            articles[document.name] = articles.get(document.name, "") + document.text
        assert len(articles) == 2 < len(documents)
        for text, title in zip(articles.values(), ("First <unk>", "Second ( album )"), strict=True):
            expected = [f"= {title} =", f"A line of {hub_split} .", "= = Its part = ="]
            assert text.split("\n") == expected + [f"{title} is {n} @,@ 000 in {hub_split} ." for n in range(300)]
        names[split] = set(articles)
    assert len(set.union(*names.values())) == 6


@pytest.mark.model
def test_the_origin_of_the_text_is_recorded(demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_offline_text_is_never_substituted_silently(name: str, demo: Any) -> None:
    """The Hub is unreachable in tests. The error says how to read offline text, if there is any."""
    advice = rf"instead \(.*\), use load_corpus\('{name}', model, offline=True\) or --offline"
    no_text = "'pile' has no offline text: the corpora that have it are python, "
    with pytest.raises(sp.SpLensError, match=f"cannot read {HUB[name].repository} from the Hugging Face Hub") as error:
        sp.load_corpus(name, demo, tokens=100)
    assert error.match(no_text if name == "pile" else advice)


def test_a_stream_that_breaks_off_raises_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    github_code(tmp_path)
    (tmp_path / "data" / "train-00001-of-00880.parquet").write_bytes(b"PAR1 half a file")
    files = str(tmp_path / "data" / "*.parquet")
    monkeypatch.setitem(HUB, "code", HUB["code"]._replace(repository="some/code", files=files))
    documents = read_text("code", "train", offline=False)[0]
    assert next(documents).text.startswith("This is text")
    with pytest.raises(sp.SpLensError, match="cannot read some/code"):
        list(documents)


def offline_documents(name: str) -> dict[Split, list[Document]]:
    return {split: list(read_offline(name, split)) for split in SPLITS}


def split_by_name(name: str) -> dict[str, Split]:
    return {document.name: split for split, documents in offline_documents(name).items() for document in documents}


@pytest.fixture
def tweets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The last two words and the label of 60 tweets of each label, in a table that has retweets of them too."""
    contents = [
        (f"{word} {number}", label)
        for label, word in (("hate", "awful"), ("offensive", "rude"), ("neither", "kind"))
        for number in range(60)
    ]
    rows = [(f"Look &amp; see https://t.co/x{n} {text}", label) for n, (text, label) in enumerate(contents)]
    rows += [(f"!!! RT @user_{n}: Look &amp; see: {text}", label) for n, (text, label) in enumerate(contents)]
    rows += [("I am both ones", "neither"), ("RT @x I am BOTH ones!", "hate"), ("@only @names http://t.co/x", "hate")]
    table = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    Dataset.from_dict(table).to_parquet(tmp_path / "tweets-offensive.parquet")
    monkeypatch.setenv("SP_LENS_DATA", str(tmp_path))
    return contents


def test_tweets_are_cleaned_and_read_once(tweets: list[tuple[str, str]]) -> None:
    for name, labels in (("toxic", ("hate", "offensive")), ("civil", ("neither",))):
        texts = [document.text for documents in offline_documents(name).values() for document in documents]
        # Tweets with both labels or without words are left out, and a retweet is the same document as its tweet.
        assert sorted(texts) == sorted(f"Look & see {text}" for text, label in tweets if label in labels)


def test_tweets_and_retweets_are_in_the_same_split(tweets: list[tuple[str, str]], tmp_path: Path) -> None:
    before = split_by_name("toxic")
    table = Dataset.from_parquet(str(tmp_path / "tweets-offensive.parquet"))
    table.select(range(180, len(table))).to_parquet(tmp_path / "tweets-offensive.parquet")  # the retweets alone
    after = split_by_name("toxic")
    assert after == before
    assert set(after.values()) == set(SPLITS)
    assert all(hashed_split(name) == split for name, split in after.items())


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def check_tweet_splits(raw: list[str]) -> None:
    """Check that no tweet of the split train is in another split of the offline corpora, by its cleaned words."""
    train = {words(clean_tweet(text)) for text in raw if split_of_tweet(text) == "train"}
    for name in ("civil", "toxic"):
        by_split = {
            split: {words(document.text) for document in documents}
            for split, documents in offline_documents(name).items()
        }
        assert all(by_split.values())
        assert by_split["train"] <= train
        assert not train & (by_split["collect"] | by_split["evaluate"])


@pytest.mark.usefixtures("tweets")
def test_tweets_of_the_train_split_are_in_no_other_split(tmp_path: Path) -> None:
    check_tweet_splits(Dataset.from_parquet(str(tmp_path / "tweets-offensive.parquet"))["text"][:])


@pytest.mark.skipif("SP_LENS_DATA" not in os.environ, reason="the tweets are in the folder SP_LENS_DATA")
def test_labelled_tweets_of_the_train_split_are_in_no_other_split() -> None:
    check_tweet_splits(Dataset.from_parquet(f"{os.environ['SP_LENS_DATA']}/tweets-offensive.parquet")["text"][:])


def test_offline_wikitext_has_no_training_articles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_copies_of_toxic_comments_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comments = [*numbered(50), numbered(1)[0].upper()]
    Dataset.from_dict({"comment_id": range(51), "text": comments}).to_parquet(tmp_path / "civil-comments-toxic.parquet")
    monkeypatch.setenv("SP_LENS_DATA", str(tmp_path))
    documents = itertools.chain.from_iterable(offline_documents("toxic_comments").values())
    assert sorted(document.text for document in documents) == sorted(numbered(50))


@pytest.mark.parametrize("name", ["civil", "toxic", "wikitext", "novels", "toxic_comments"])
def test_the_error_for_a_missing_file_names_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SP_LENS_DATA", str(tmp_path))
    with pytest.raises(sp.SpLensError, match=r"there is no file .*\.parquet: set SP_LENS_DATA to a folder that has it"):
        read_offline(name, "collect")


def test_every_name_is_documented_and_can_be_read() -> None:
    assert set(CORPORA) == set(HUB) | set(OFFLINE)
    assert set(HUB) - set(OFFLINE) == {"pile"}
    assert set(OFFLINE) - set(HUB) == {"novels", "toxic_comments"}
    assert all(source.origin for source in OFFLINE.values())
    assert set(re.findall(r"^\| `(\w+)`", registry.__doc__ or "", flags=re.MULTILINE)) == set(CORPORA)

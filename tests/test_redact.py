"""What may be shown: no secrets of URLs, no control characters, nothing endless."""

import pickle

import pytest

from kdpipe._util.redact import bare_url, redact, showable
from kdpipe.errors import KdpipeError, ShardError

SECRETS = ["hunter2", "SIGNATURE", "user"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:hunter2@host:81/a/b.tar", "http://host:81/a/b.tar"),
        ("https://user@host/b.tar", "https://host/b.tar"),
        ("https://host/b.tar?X-Amz-Signature=SIGNATURE&x=1#user", "https://host/b.tar"),
        ("https://host/b.tar?SIGNATURE", "https://host/b.tar"),
        ("HTTPS://user:hunter2@host/b.tar?SIGNATURE", "HTTPS://host/b.tar"),
        ("http://user:hun/ter2@host/b.tar", "http://host/b.tar"),
        ("http://user:hun?ter2@host/b.tar", "http://host/b.tar"),
        ("http://user:hun@ter2@host/b.tar", "http://host/b.tar"),
        ("sftp://user:hunter2@host/b.tar", "sftp://host/b.tar"),
        ("simplecache::https://user:hunter2@host/b.tar?sig=SIGNATURE", "simplecache::https://host/b.tar"),
        ("s3://bucket/b.tar?versionId=SIGNATURE", "s3://bucket/b.tar"),
        ("http://user:hunter2@[::1]:81/b.tar", "http://[::1]:81/b.tar"),
        # Nothing to hide.
        ("s3://bucket/a-000?.tar", "s3://bucket/a-000?.tar"),
        ("s3://bucket/a@b/c.tar", "s3://bucket/a@b/c.tar"),
        ("http://host:81/a@b/c.tar", "http://host:81/a@b/c.tar"),
        ("http://[::1]:81/a@b.tar", "http://[::1]:81/a@b.tar"),
        ("abfs://container@account.dfs.core.windows.net/b.tar", "abfs://container@account.dfs.core.windows.net/b.tar"),
        ("/folder/a@b?c=d/e.tar", "/folder/a@b?c=d/e.tar"),
    ],
)
def test_urls_lose_their_secrets_and_nothing_else(url: str, shown: str) -> None:
    assert bare_url(url) == bare_url(shown) == shown
    assert redact(f"can't read ('{url}'), sorry") == f"can't read ('{shown}'), sorry"
    assert redact(f"{url}, <{url}>.") == f"{shown}, <{shown}>."


def test_urls_that_are_joined_are_all_shown() -> None:
    assert redact("http://u:p@h/a?s::https://h/b?t::s3://b/c") == "http://h/a::https://h/b::s3://b/c"


def test_no_error_has_a_secret_in_its_words_or_fields() -> None:
    url = "https://user:hunter2@host/b.tar?sig=SIGNATURE"
    error = ShardError(f"can't read {url}", where=url, found=[url], allowed={"a": url}, do=f"Ask {url}")
    for text in (str(error), repr(error), *error.args, *map(str, vars(error).values()), str(pickle.dumps(error))):
        assert not any(secret in text for secret in SECRETS)
    assert str(error).startswith("https://host/b.tar: can't read https://host/b.tar; found ['https://host/b.tar']")


def test_control_characters_are_escaped_in_every_error() -> None:
    error = KdpipeError("a bad\x1b[31m key", where="a\nb\u202e\udc80\x00", found="é ü 語")
    assert str(error) == r"a b\u202e\udc80\x00: a bad\x1b[31m key; found é ü 語"


def test_no_error_is_endless() -> None:
    text = str(KdpipeError("what", where="w" * 10**6, found="f" * 10**6, do="Do this"))
    assert len(text) < 5000
    assert text.endswith("Do this")


def test_reports_are_made_safe_to_their_last_text() -> None:
    report = {"a": ["x\x1b", {"b": "http://u:p@h/a?b"}], "n": 1.5, "none": None, "yes": True}
    assert showable(report) == {"a": [r"x\x1b", {"b": "http://h/a"}], "n": 1.5, "none": None, "yes": True}

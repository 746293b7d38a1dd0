"""What must not leave a machine is found in every form that it is written in, and nothing else is."""

from __future__ import annotations

import pytest

from octavo.privacy import Labels, expand, leak, redact
from tests.tiny import REPOSITORY

SECRETS = [
    "HF_TOKEN=hf_123", "hf_token=abc", "HF_TOKEN: x", '{"HF_TOKEN": "x"}', "{'api_key': 'x1'}", "wandb_api_key = x",
    "AWS_SECRET_ACCESS_KEY=x", "export MYSQL_PASS=hunter2", "DB_PASSWD: y", "password=hunter2", "Password: hunter2",
    "API_KEY=0123",
    "GOOGLE_CREDENTIALS=x.json", "credentials: x", "--token=abc", "https://user:hunter2@host/x", "postgres://u:p@host",
    "user:hunter2@host.example.org", "Authorization: Bearer abcdefgh12345678", "Bearer abcdefgh12345678",
    "Authorization: Basic dXNlcjpwYXNz", "hf_abcdefghijklmnopqrst", "ghp_abcdefghijklmnopqrst0123456789",
    "AKIAIOSFODNN7EXAMPLE", "github_pat_11ABCDEFG0abcdefghijkl", "xoxb-1234567890-abcdef", "glpat-abcdefghij0123456789",
    "sk-abcdefghijklmnopqrstuvwx", "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2",
    "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl",
]  # fmt: skip
HOMES = [
    "/home/somebody", "/home/somebody/x", "open('/home/somebody')", "/Users/somebody", "/root", "/root/x", "cd /root;",
    "/gpfs/home/somebody", "/data/users/somebody/x", "/cluster/nfs/homes/somebody", "C:\\Users\\somebody\\x",
]  # fmt: skip
NEITHER = [
    '"token_type": "uint16"',
    '{"flops_per_token": 1.5e9, "token": 7}',
    "nats per token: about 2",
    "tokens: 5", '{"tokens": 512, "tokens_per_second": 1.0}', "tokenizer: bytes", "tokenizer: {kind: bytes}",
    "end_of_document: x", "passed: results", "--signal=USR1@120", "debian@sha256:0123abcd", "https://w3id.org/ro/crate",
    "https://example.org/users/somebody", "/rooted", "homes of", "a/home/x.txt", "HF_TOKEN=...",
    "the bearer of news", "docker://debian:12", "12:30 at noon", "git@github.com:x/y", "null_token: null",
]  # fmt: skip


@pytest.mark.parametrize("text", SECRETS + HOMES)
def test_what_is_found_is_cleaned(text: str) -> None:
    assert leak(text) is not None
    cleaned = redact(f"it failed: {text}")
    assert leak(cleaned) is None
    for part in ("hunter2", "somebody", "MIIE", "abcdefgh", "hf_123", "AKIAIOSF"):
        assert part not in cleaned


@pytest.mark.parametrize("text", NEITHER)
def test_what_is_no_secret_is_left(text: str) -> None:
    assert leak(text) is None
    assert redact(text) == text


def test_nothing_that_this_repository_puts_into_bundles_looks_like_a_secret() -> None:
    for folder in ("configs", "workflow", "results/reference"):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.is_file() and path.suffix in (".yaml", ".csv", ".smk", ".json"):
                assert leak(path.read_text()) is None, path
    assert leak((REPOSITORY / "requirements.lock").read_text()) is None


def test_long_texts_are_looked_through_in_linear_time() -> None:
    """Much of what several patterns begin with; a pattern that goes back over it would take minutes."""
    for text in (
        "token" * 20_000,
        "a:" * 50_000,
        "/home" * 20_000,
        "-" * 100_000,
        "password " * 10_000,
        "/a" * 50_000,
    ):
        leak(text)


def test_computers_have_labels_in_the_order_they_are_met() -> None:
    labels = Labels()
    assert labels.of("gpu[09-11],login1") == "node-1,node-2,node-3,node-4"
    assert labels.of("gpu10") == "node-2"
    assert (
        labels.within("gpu10: cannot reach gpu11:29500, gpu1 or gpu100")
        == "node-2: cannot reach node-3:29500, gpu1 or gpu100"
    )


def test_lists_of_hosts_as_slurm_writes_them() -> None:
    """By the examples of Slurm's scontrol(1), `show hostnames`."""
    assert expand("tux[1-3]") == ["tux1", "tux2", "tux3"]
    assert expand("dev[00-01,4]") == ["dev00", "dev01", "dev4"]
    assert expand("rack[0-1]node[2-3]") == ["rack0node2", "rack0node3", "rack1node2", "rack1node3"]
    assert expand("lx[1-999999999]") == ["lx[1-999999999]"]
    assert expand("vm") == ["vm"]

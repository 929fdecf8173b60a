"""Secrets that are none: one of each kind, in the shape of its issuer. Put together here, so that no scanner of a repository takes them for real."""

from __future__ import annotations

import hashlib
import string


def letters(count: int, seed: str = "", alphabet: str = string.ascii_letters + string.digits) -> str:
    """So many letters that look random and are always the same; the first is a letter, the second a digit, where the alphabet has them."""
    digest = b"".join(hashlib.sha256(f"canary {seed} {block}".encode()).digest() for block in range(count // 32 + 1))
    told = "".join(alphabet[byte % len(alphabet)] for byte in digest[:count])
    head = next((letter for letter in alphabet if letter.isalpha()), "") + next((letter for letter in alphabet if letter.isdigit()), "")
    return (head + told)[:count]


HEX = "0123456789abcdef"
UPPER = string.ascii_uppercase + string.digits
PEM = f"-----BEGIN RSA PRIVATE {'KEY'}-----\n{letters(64, 'pem')}\n{letters(64, 'pem 2')}\n-----END RSA PRIVATE {'KEY'}-----"

CANARIES: dict[str, tuple[str, str]] = {
    "hugging face": (letters(34, "hf"), "hf_{}"),
    "wandb": (letters(40, "wandb", HEX), "WANDB_API_KEY={}"),
    "wandb, newer": (letters(64, "wandb 2"), "wandb_v1_{}"),
    "netrc": (letters(40, "netrc", HEX), "machine api.wandb.ai\n  login user\n  password {}"),
    "openai": (letters(48, "openai"), "sk-{}"),
    "openai project": (letters(60, "openai 2"), "sk-proj-{}"),
    "anthropic": (letters(80, "anthropic"), "sk-ant-api03-{}"),
    "github": (letters(36, "github"), "ghp_{}"),
    "github app": (letters(36, "github 2"), "ghs_{}"),
    "github, fine": (letters(82, "github 3"), "github_pat_{}"),
    "gitlab": (letters(20, "gitlab"), "glpat-{}"),
    "aws id": (letters(16, "aws", UPPER), "AKIA{}"),
    "aws secret": (letters(40, "aws 2", string.ascii_letters + string.digits + "/+"), "aws_secret_access_key = {}"),
    "google": (letters(35, "google"), "AIza{}"),
    "google oauth": (letters(60, "google 2"), "ya29.{}"),
    "private key": (PEM.splitlines()[1], PEM.replace(PEM.splitlines()[1], "{}")),
    "service account": (letters(64, "gcp"), '"private_key": "-----BEGIN PRIVATE ' + 'KEY-----\\n{}\\n-----END PRIVATE KEY-----\\n"'),
    "azure sas": (letters(43, "azure") + "%3D", "https://account.blob.core.windows.net/data?sv=2024&sig={}"),
    "azure account": (letters(86, "azure 2") + "==", "AccountName=data;AccountKey={};EndpointSuffix=core"),
    "slack": (letters(24, "slack"), "xoxb-12345678901-{}"),
    "slack webhook": (letters(24, "slack 2"), "https://hooks.slack.com/services/T0001/B0002/{}"),
    "stripe": (letters(24, "stripe"), "sk_live_{}"),
    "sendgrid": (letters(43, "sendgrid"), "SG.a1b2c3d4e5f6g7h8i9j0k1.{}"),
    "npm": (letters(36, "npm"), "npm_{}"),
    "pypi": (letters(100, "pypi"), "pypi-AgEIcHlwaS5vcmc{}"),
    "docker": (letters(27, "docker"), "dckr_pat_{}"),
    "json web token": (letters(43, "jwt"), "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.{}"),
    "bearer": (letters(32, "bearer"), "Authorization: Bearer {}"),
    "basic": (letters(24, "basic"), "Authorization: Basic {}"),
    "userinfo": (letters(14, "userinfo"), "https://user:{}@mirror.example.com/data.jsonl"),
    "userinfo alone": (letters(24, "userinfo 2"), "https://{}@mirror.example.com/data.jsonl"),
    "query token": (letters(18, "query"), "https://mirror.example.com/data.jsonl?part=1&token={}"),
    "query password": (letters(9, "query 2"), "https://mirror.example.com/data.jsonl?password={}"),
    "signed address": (letters(64, "s3", HEX), "https://bucket.s3.amazonaws.com/x?X-Amz-Signature={}"),
    "password": (letters(12, "password"), "password: {}"),
    "discord": (letters(38, "discord"), "MTIzNDU2Nzg5MDEyMzQ1Njc4.GhIjKl.{}"),
    "telegram": (letters(35, "telegram"), "1234567890:{}"),
    "databricks": (letters(32, "databricks", HEX), "dapi{}"),
    "groq": (letters(52, "groq"), "gsk_{}"),
    "vault": (letters(24, "vault"), "hvs.{}"),
}
"""By name: the part that nobody may see, and the text around it."""


def canary(name: str) -> str:
    """The whole text of a kind."""
    secret, around = CANARIES[name]
    return around.replace("{}", secret)

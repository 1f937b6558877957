"""The one grammar of names. Whatever comes from outside passes here before it is used."""

import re

PLATFORM = re.compile(r"[a-z][a-z0-9]{2,11}")  # it names a bucket, too
APP = re.compile(r"[a-z][a-z0-9-]{1,28}[a-z0-9]")
PROCESS_TYPE = re.compile(r"[a-z][a-z0-9_-]{0,29}")
CONFIG_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
DNS_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
DOMAIN = re.compile(rf"(?=.{{1,253}}$)({DNS_LABEL}\.)*{DNS_LABEL}")
SHA256 = re.compile(r"[0-9a-f]{64}")

RESERVED_CONFIG = ("BLACKSTART_", "PORT", "DYNO")


class NameRefused(ValueError):
    """A name breaks the grammar. The message says which, and what is allowed."""


def platform_name(value: str) -> str:
    """Return `value` when it names a platform."""
    return _matching(
        value, PLATFORM, "platform name", "3 to 12 characters: a lower-case letter, then letters or digits"
    )


def app_name(value: str) -> str:
    """Return `value` when it is an app's name, by Heroku's rule."""
    return _matching(
        value,
        APP,
        "app name",
        "3 to 30 characters: lower-case letters, digits and dashes, starting with a letter, ending with a letter or digit",
    )


def process_type(value: str) -> str:
    """Return `value` when it names a process type."""
    return _matching(
        value, PROCESS_TYPE, "process type", "a lower-case letter, then up to 29 letters, digits, dashes or underscores"
    )


def config_key(value: str) -> str:
    """Return `value` when it may name a config var."""
    _matching(value, CONFIG_KEY, "config var name", "letters, digits and underscores, not starting with a digit")
    if value in RESERVED_CONFIG or value.startswith("BLACKSTART_"):
        raise NameRefused(f"config var name {value!r} is reserved: the platform sets it")
    return value


def domain(value: str) -> str:
    """Return `value` in lower case when it is a host name (RFC 1123)."""
    return _matching(value.lower(), DOMAIN, "domain", "labels of letters, digits and dashes, joined by dots")


def sha256(value: str) -> str:
    """Return `value` when it is a sha256 in lower-case hex."""
    return _matching(value, SHA256, "sha256", "64 hex digits")


def _matching(value: str, pattern: re.Pattern[str], kind: str, rule: str) -> str:
    if pattern.fullmatch(value) is None:
        raise NameRefused(f"{kind} {value[:80]!r} is refused: allowed are {rule}")
    return value

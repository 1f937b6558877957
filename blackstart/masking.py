"""Taking secrets out of what people pass on: reports, bundles of logs."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from blackstart.state import State

MASK = "[masked]"
SHORTEST = 8
"""Shorter values are no secrets of ours, and masking them would shred the text."""

_PATTERNS = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), MASK),
    (re.compile(r"SWMTKN-[\w-]+"), MASK),
    (re.compile(r"((?:X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token)=)[^&\s\"']+"), rf"\1{MASK}"),
    (re.compile(r"(?i)(authorization:?\s*(?:bearer|basic)\s+|bearer )[\w.~+/=-]{8,}"), rf"\1{MASK}"),
    (re.compile(r"(\w+://[^\s:/@\"']*:)[^\s/@\"']+@"), rf"\1{MASK}@"),
    (re.compile(r"(/streams/\w+/[0-9a-f-]{36}/)[\w-]+"), rf"\1{MASK}"),
)


@dataclass(frozen=True)
class Masker:
    """Replaces `values`, in each form in which they are written, and what looks like a credential by its form."""

    values: tuple[str, ...]

    @classmethod
    def of(cls, state: State) -> Masker:
        """Return the masker of every secret in the platform's state folder."""
        known = [*state.kept_secrets().values(), *state.retired().values()]
        keys = [*sorted((state.folder / "ca").glob("*.key")), state.folder / "ssh" / "id_ed25519"]
        bodies = [
            line for path in keys if path.exists() for line in path.read_text().splitlines() if "-----" not in line
        ]
        forms = {form for value in (*known, *bodies) if len(value) >= SHORTEST for form in _forms(value)}
        return cls(values=tuple(sorted(forms, key=lambda form: (-len(form), form))))

    def mask(self, text: str) -> str:
        """Return `text` without secrets."""
        for value in self.values:
            text = text.replace(value, MASK)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text

    def masked(self, value: Any) -> Any:
        """Return a JSON value with every string in it masked, names of keys too."""
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, dict):
            return {self.mask(str(key)): self.masked(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.masked(each) for each in value]
        return value


def _forms(value: str) -> set[str]:
    coded = base64.b64encode(value.encode()).decode().rstrip("=")
    return {value, quote(value), quote(value, safe=""), json.dumps(value)[1:-1], coded}

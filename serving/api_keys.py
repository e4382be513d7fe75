"""API keys: `sidrec_ID_SECRET`. The store holds the id, a salt and a hash; the secret is seen once, by whoever makes the key."""

from __future__ import annotations

import hashlib
import re
import secrets

SCOPES = ("read", "write", "admin")
PREFIX = "sidrec"


def new_key() -> tuple[str, str, str, str]:
    """(key, id, salt, hash) of a fresh key: 256 random bits."""
    key_id, salt, secret = secrets.token_hex(4), secrets.token_hex(16), secrets.token_urlsafe(32)
    return f"{PREFIX}_{key_id}_{secret}", key_id, salt, hash_of(secret, salt)


def hash_of(secret: str, salt: str) -> str:
    """Hex sha256 of salt and secret. A slow hash would add nothing: nobody guesses 256 random bits."""
    return hashlib.sha256(f"{salt}{secret}".encode("utf-8", "surrogatepass")).hexdigest()


def parts_of(key: str) -> tuple[str, str]:
    """(id, secret) of a key; of what is none, two texts that fit no key."""
    match = re.fullmatch(rf"{PREFIX}_([0-9a-f]{{8}})_(.+)", key)
    return (match[1], match[2]) if match else ("", "")


def fits(secret: str, salt: str, stored: str) -> bool:
    """Whether the secret is the one that was stored; takes as long for a near miss as for a far one."""
    return secrets.compare_digest(hash_of(secret, salt), stored)

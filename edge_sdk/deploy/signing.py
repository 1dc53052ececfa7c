"""Signatures of bundles: Ed25519 (RFC 8032) over the manifest, which holds the hash of every file.

    signature.json  in the bundle, not listed in its manifest: by whom, and the signatures
    trusted_keys    on the board: a line for each key, ``ed25519 BASE64 name``, as ``edge-sdk keys`` wrote it

A bundle may be signed with several keys and a board may trust several: to change keys, sign with both, give boards the
new one, then take the old line out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_sdk.bundle import MANIFEST, Bundle
from edge_sdk.errors import DeployError, explain
from edge_sdk.files import new_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE = "signature.json"
ALGORITHM = "ed25519"
CONTEXT = b"edge-sdk bundle manifest, signature format 1\n"
"""Comes before what is signed, so that no signature made for something else fits."""


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signature."""

    key: str
    """:attr:`PublicKey.key_id` of the key that made it."""
    signature: bytes


class Signatures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of signature.json."""

    manifest: str = ""
    """SHA-256 of the manifest that was signed, by which those of an older one are told."""
    signatures: tuple[Signature, ...] = ()


class PublicKey(msgspec.Struct, frozen=True):
    """A key that a board trusts."""

    raw: bytes
    """The 32 bytes of RFC 8032."""
    name: str

    @property
    def key_id(self) -> str:
        """Names the key in signatures."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def line(self) -> str:
        """As it stands in a file of trusted keys."""
        return f"{ALGORITHM} {base64.b64encode(self.raw).decode()} {self.name}\n"


def make_keys(path: Path, name: str) -> PublicKey:
    """Writes a new private key to ``path``, which only its owner may read, and the public one to ``path``.pub.

    Raises DeployError where one is there already.
    """
    from cryptography.hazmat.primitives import serialization

    if path.exists():
        raise DeployError(explain(str(path), expected="no file", found="one", todo="Choose another name."))
    if not name.strip() or "\n" in name:
        raise DeployError(explain("The key's name", expected="a line of text", found=repr(name), todo="Choose one."))
    private = _ed25519().generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with new_file(path) as temporary:
        os.chmod(temporary, 0o600)
        temporary.write_bytes(pem)
    public = PublicKey(private.public_key().public_bytes_raw(), name.strip())
    with new_file(path.with_name(path.name + ".pub")) as temporary:
        temporary.write_text(public.line(), encoding="utf-8")
    return public


def sign(bundle: Path, key: Path) -> str:
    """Checks a bundle and adds a signature to those that it has; returns the key's id.

    Signatures of another manifest are dropped. Raises BundleError and DeployError.
    """
    Bundle.open(bundle)
    private = _private_key(key)
    public = PublicKey(private.public_key().public_bytes_raw(), key.name)
    manifest = (bundle / MANIFEST).read_bytes()
    old = read_signatures((bundle / SIGNATURE).read_bytes()) if (bundle / SIGNATURE).exists() else Signatures()
    signed = hashlib.sha256(manifest).hexdigest()
    kept = [one for one in old.signatures if one.key != public.key_id and old.manifest == signed]
    new = Signatures(signed, (*kept, Signature(public.key_id, private.sign(CONTEXT + manifest))))
    with new_file(bundle / SIGNATURE) as temporary:
        temporary.write_bytes(msgspec.json.encode(new) + b"\n")
    return public.key_id


def read_signatures(content: bytes) -> Signatures:
    """The content of signature.json. Raises DeployError."""
    try:
        return msgspec.json.decode(content, type=Signatures)
    except msgspec.DecodeError as error:
        todo = "Sign the bundle again with `edge-sdk sign`."
        raise DeployError(explain(SIGNATURE, expected="signatures", found=error, todo=todo)) from None


def read_keys(path: Path) -> list[PublicKey]:
    """A file of trusted keys; none where there is no file. Raises DeployError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [_read_key(path, line) for line in lines if line.strip() and not line.startswith("#")]


def verify(manifest: bytes, signature: bytes, keys: Sequence[PublicKey]) -> str:
    """The name of a trusted key that signed the manifest. Raises DeployError where there is none."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    trusted = {key.key_id: key for key in keys}
    found = read_signatures(signature).signatures if signature else ()
    for one in found:
        if (key := trusted.get(one.key)) is not None:
            try:
                Ed25519PublicKey.from_public_bytes(key.raw).verify(one.signature, CONTEXT + manifest)
            except InvalidSignature:
                continue  # another of the signatures may be right
            return key.name
    known = [f"{one.key} that does not fit the manifest" for one in found if one.key in trusted]
    unknown = [f"{one.key} that this board does not trust" for one in found if one.key not in trusted]
    raise DeployError(
        explain(
            "The bundle's signature",
            expected=f"one of {', '.join(f'{key.key_id} ({key.name})' for key in keys) or 'a trusted key'}",
            found=", ".join(known + unknown) or "none",
            todo="Sign it with `edge-sdk sign BUNDLE --key FILE`, or have the board trust the key.",
        )
    )


def _read_key(path: Path, line: str) -> PublicKey:
    parts = line.split(maxsplit=2)
    try:
        algorithm, encoded, name = parts
        raw = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        algorithm, raw, name = "", b"", ""
    if algorithm != ALGORITHM or len(raw) != 32:
        todo = "Copy the line from the key's .pub file."
        raise DeployError(explain(str(path), expected=f"{ALGORITHM} BASE64 name", found=repr(line), todo=todo))
    return PublicKey(raw, name)


def _private_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    kind = _ed25519()
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        todo = "Make one with `edge-sdk keys FILE`."
        raise DeployError(explain(str(path), expected="a private key", found=error, todo=todo)) from None
    if not isinstance(key, kind):
        todo = "Make one with `edge-sdk keys FILE`."
        raise DeployError(explain(str(path), expected="an Ed25519 key", found=type(key).__name__, todo=todo))
    return key


def _ed25519() -> type[Ed25519PrivateKey]:
    """The class of private keys. Raises DeployError where the package is missing."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        todo = "pip install 'edge-sdk[deploy]'"
        raise DeployError(explain("Signatures", expected="cryptography", found=error, todo=todo)) from None
    return Ed25519PrivateKey

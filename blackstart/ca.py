"""The platform's own certificate authority, made at bootstrap. Its key never leaves the state folder."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from blackstart.errors import BlackstartError
from blackstart.state import State, write_durably

CA_DAYS = 3650
LEAF_DAYS = 825
WARNING_DAYS = 60
CLOCK_SKEW = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, both PEM."""

    certificate: str
    key: str


def ensure_ca(state: State) -> Pair:
    """Return the platform's CA, made on the first call."""
    key_path, certificate_path = state.folder / "ca" / "ca.key", state.ca_path
    with state.making():
        if not certificate_path.exists():
            # A key without a certificate is of a run that was killed here: nothing was ever signed with it.
            pair = _new_ca(state.platform)
            write_durably(key_path, pair.key.encode())
            write_durably(certificate_path, pair.certificate.encode(), mode=0o644)
    check_ca(state)
    return Pair(certificate=certificate_path.read_text(), key=key_path.read_text())


def check_ca(state: State) -> None:
    """Refuse a CA that is another platform's, damaged, or half lost; no CA at all is right. Raises BlackstartError."""
    if not state.ca_path.exists():
        return
    try:
        certificate = x509.load_pem_x509_certificate(state.ca_path.read_bytes())
        key = serialization.load_pem_private_key((state.folder / "ca" / "ca.key").read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise BlackstartError(
            f"the CA in {state.folder / 'ca'} is damaged", why=str(error), fix="restore ca.pem and ca.key from a copy"
        ) from error
    if certificate.subject != _ca_name(state.platform):
        raise BlackstartError(
            f"{state.folder} holds the state of another platform",
            why=f"its CA is the {certificate.subject.rfc4514_string()}",
            fix=f"restore the state of {state.platform} from its own copy, or choose another --platform",
        )
    if certificate.public_key() != key.public_key():
        raise BlackstartError(
            f"in {state.folder / 'ca'} ca.key is not the key of ca.pem", fix="restore both from the same copy"
        )


def _ca_name(platform: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Blackstart CA of {platform}")])


def ensure_leaf(state: State, name: str, *, hosts: tuple[str, ...]) -> Pair:
    """Return the certificate of `name` for `hosts` (names or addresses), made anew when it lacks one or expires soon."""
    folder: Path = state.folder / "ca"
    key_path, certificate_path = folder / f"{name}.key", folder / f"{name}.pem"
    ca = ensure_ca(state)
    with state.making():
        if key_path.exists() and certificate_path.exists():
            pair = Pair(certificate=certificate_path.read_text(), key=key_path.read_text())
            if _still_good(pair, ca, hosts):
                return pair
        pair = _new_leaf(ca, name, hosts)
        write_durably(key_path, pair.key.encode())
        write_durably(certificate_path, pair.certificate.encode(), mode=0o644)
    return pair


def retire_leaf(state: State, name: str) -> None:
    """Have the certificate of `name` made anew with another key at its next use; the old certificate is kept beside it."""
    folder: Path = state.folder / "ca"
    with state.making():
        (folder / f"{name}.key").unlink(missing_ok=True)
        kept = folder / f"retired-{name}.pem"
        if not kept.exists() and (folder / f"{name}.pem").exists():
            (folder / f"{name}.pem").rename(kept)


def _still_good(pair: Pair, ca: Pair, hosts: tuple[str, ...]) -> bool:
    """Whether it is for these hosts, not about to expire, and whole: a run may have been killed between its two files."""
    try:
        loaded = x509.load_pem_x509_certificate(pair.certificate.encode())
        key = serialization.load_pem_private_key(pair.key.encode(), password=None)
        loaded.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.certificate.encode()))
    except (ValueError, TypeError, InvalidSignature):
        return False
    if loaded.public_key() != key.public_key():
        return False
    names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    same = list(names) == [_general_name(host) for host in hosts]
    left = loaded.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return same and left > datetime.timedelta(days=LEAF_DAYS // 3)


def expiring(state: State) -> list[str]:
    """Say which certificates in use expire within WARNING_DAYS: once they have, no upgrade can reach the platform."""
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=WARNING_DAYS)
    found = []
    for path in sorted((state.folder / "ca").glob("*.pem")):
        if not path.name.startswith("retired-"):
            ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
            if ends < soon:
                found.append(
                    f"the certificate of {path.stem} expires on {ends:%Y-%m-%d}: run `upgrade` before that day"
                )
    return found


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    start = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - CLOCK_SKEW)
        .not_valid_after(start + datetime.timedelta(days=days))
    )


def _new_ca(platform: str) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _ca_name(platform)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate, key)


def _new_leaf(ca: Pair, name: str, hosts: tuple[str, ...]) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    ca_certificate = x509.load_pem_x509_certificate(ca.certificate.encode())
    ca_key = serialization.load_pem_private_key(ca.key.encode(), password=None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise TypeError("the CA's key is not an EC key")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(subject, ca_certificate.subject, key.public_key(), LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return _pem(certificate, key)


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )

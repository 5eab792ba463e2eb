"""Certificates of one Dask cluster: an authority of its own, and one certificate that all of its parts share."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from replaygen.errors import ReplaygenError

FILES = ("ca.pem", "cert.pem", "key.pem")


def make_certificates(folder: Path, days: int = 365) -> list[Path]:
    """Write ca.pem, cert.pem and key.pem (readable by this user alone) for scheduler, workers and clients.

    Whoever has the key may run code on the cluster; the authority signs nothing else, its own key is not kept.

    Raises:
        ReplaygenError: one of the files is there already, or cryptography is not installed.
    """
    paths = [folder / name for name in FILES]
    there = [path for path in paths if path.exists()]
    if there:
        raise ReplaygenError("certificates are there already", where=str(there[0]), hint="name another folder")
    contents = _signed(days)
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):  # a folder of its own: git shall not take the key
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    for path, content in zip(paths, contents, strict=True):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if path.name == "key.pem" else 0o644)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
    return paths


def _signed(days: int) -> tuple[bytes, bytes, bytes]:
    """(authority, certificate, key), each PEM."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError:
        raise ReplaygenError(
            "making certificates needs cryptography, which is not installed", hint="pip install 'replaygen[jobqueue]'"
        ) from None
    now = datetime.now(UTC)
    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    above = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "one Dask cluster")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dask")])

    def signed(subject: x509.Name, key: ec.EllipticCurvePublicKey, *more: tuple[x509.ExtensionType, bool]) -> bytes:
        known = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
        made = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(above).public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(known, critical=False)
        )  # fmt: skip
        for extension, critical in more:
            made = made.add_extension(extension, critical=critical)
        return made.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    signs = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    plain = serialization.NoEncryption()
    return (
        signed(above, authority.public_key(), (x509.BasicConstraints(ca=True, path_length=0), True), (signs, True)),
        signed(name, own.public_key(), (x509.BasicConstraints(ca=False, path_length=None), True), (both, False),
               (x509.SubjectAlternativeName([x509.DNSName("dask")]), False)),
        own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain),
    )  # fmt: skip

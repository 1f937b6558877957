"""The files that PostgreSQL and pgBackRest read, as pure functions of the settings."""

from __future__ import annotations

from pathlib import Path

from blackstart.process.failure import ProcessFailed
from blackstart.process.settings import Certificate

from .settings import ARCHIVE_PREFIX, DATABASE, ROLE, SUPERUSER, Archive, Paths


def quoted(value: str) -> str:
    """Return `value` as a string of postgresql.conf."""
    if "\n" in value or "\0" in value:
        raise ProcessFailed(f"{value!r} cannot stand in postgresql.conf")
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def shell_word(path: Path) -> str:
    """Return `path` for archive_command, which PostgreSQL gives to a shell."""
    if not all(character.isalnum() or character in "/._-" for character in str(path)):
        raise ProcessFailed(f"path {path} has a character that archive_command cannot carry")
    return str(path)


def backup_argv(pgbackrest: Path, paths: Paths, stanza: str) -> list[str]:
    """Return the start of every pgBackRest command; secrets are in the file it names."""
    return [shell_word(pgbackrest), f"--config={shell_word(paths.backup_config)}", f"--stanza={stanza}"]


def restore_command(pgbackrest: Path, paths: Paths, stanza: str) -> str:
    """Return PostgreSQL's restore_command."""
    return " ".join([*backup_argv(pgbackrest, paths, stanza), "archive-get", "%f", '"%p"'])


def server_config(paths: Paths, port: int, certificate: Certificate, archive_command: str | None) -> str:
    """Return postgresql.conf. `archive_command` None switches archiving off: else WAL would pile up for nobody."""
    settings = {
        **_shared(paths, port),
        "listen_addresses": quoted("*"),
        "tcp_keepalives_idle": "300",
        "tcp_keepalives_interval": "30",
        "tcp_keepalives_count": "4",
        "password_encryption": quoted("scram-sha-256"),
        "ssl": "on",
        "ssl_cert_file": quoted(str(certificate.certificate)),
        "ssl_key_file": quoted(str(certificate.key)),
        "ssl_min_protocol_version": quoted("TLSv1.2"),
        # a dyno of 512 MB
        "shared_buffers": "128MB",
        "effective_cache_size": "256MB",
        "work_mem": "4MB",
        "maintenance_work_mem": "32MB",
        "max_wal_size": "512MB",
        "min_wal_size": "64MB",
        "max_parallel_workers_per_gather": "0",  # a dyno's /dev/shm is 64 MB
        # durability, spelled out
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "wal_level": "replica",
        "archive_mode": "on" if archive_command is not None else "off",
        "archive_timeout": "60",
        "log_destination": quoted("stderr"),
        "log_line_prefix": quoted("[%p] %q%u@%d "),
        "log_min_duration_statement": "2000",
        "default_text_search_config": quoted("pg_catalog.simple"),
    }
    if archive_command is not None:
        settings["archive_command"] = quoted(archive_command)
    return "# Written at every start: changes here are lost.\n" + _lines(settings)


def _shared(paths: Paths, port: int) -> dict[str, str]:
    """Return what the server and a restored copy have in common."""
    return {
        "data_directory": quoted(str(paths.cluster)),
        "hba_file": quoted(str(paths.access)),
        "ident_file": quoted(str(paths.identities)),
        "port": str(port),
        "unix_socket_directories": quoted(str(paths.runtime)),
        "unix_socket_permissions": "0700",
        # recovery wants at least what the archived server had
        "max_connections": "100",
        "huge_pages": "off",
        "jit": "off",
        "logging_collector": "off",
        # GMT is built in; any other name needs tzdata in the stack
        "timezone": quoted("GMT"),
        "log_timezone": quoted("GMT"),
    }


def _lines(settings: dict[str, str]) -> str:
    return "".join(f"{name} = {value}\n" for name, value in settings.items())


def access_rules() -> str:
    """Return pg_hba.conf: outside only `platform` and its logins (`+`), over TLS, with their password; the superuser only
    on this machine.
    """
    return (
        f"local   all         {SUPERUSER}  peer map=operator\n"
        f"hostssl {DATABASE}  +{ROLE}  all  scram-sha-256\n"
        "local   all         all  reject\n"
        "host    all         all  all  reject\n"
    )


def rehearsal_config(paths: Paths, port: int) -> str:
    """Return postgresql.conf of a restored copy that only its own machine reaches and that archives nothing."""
    own = {"listen_addresses": quoted(""), "shared_buffers": "32MB", "archive_mode": "off"}
    return _lines({**_shared(paths, port), **own})


def local_access_rules() -> str:
    """Return pg_hba.conf of a restored copy: its own superuser and nobody else."""
    return f"local   all  {SUPERUSER}  peer map=operator\nlocal   all  all  reject\n"


def identities(user: str) -> str:
    """Return pg_ident.conf: the system's user that runs the server is its superuser."""
    return f"operator  {user}  {SUPERUSER}\n"


def backup_config(archive: Archive, paths: Paths, port: int, stanza: str) -> str:
    """Return pgbackrest.conf. One stanza per cluster: a new cluster never expires the backups of an older one."""
    for name, value in (("OBJECTS_SECRET", archive.secret), ("BACKUP_PASSPHRASE", archive.passphrase)):
        if value != value.strip() or "\n" in value:
            raise ProcessFailed(f"config var {name} has a line break, or white space at an end")
    return f"""[global]
repo1-type=s3
repo1-path={ARCHIVE_PREFIX}
repo1-s3-bucket={archive.bucket}
repo1-s3-endpoint={archive.host}
repo1-storage-port={archive.port}
repo1-storage-ca-file={archive.ca}
repo1-s3-uri-style=path
repo1-s3-region=us-east-1
repo1-s3-key={archive.key}
repo1-s3-key-secret={archive.secret}
repo1-cipher-type=aes-256-cbc
repo1-cipher-pass={archive.passphrase}
repo1-bundle=y
repo1-retention-full={archive.keep}
archive-push-queue-max={archive.queue_mb}MiB
compress-type=zst
start-fast=y
io-timeout=10
log-level-console=off
log-level-stderr=warn
log-level-file=off
log-timestamp=n
lock-path={paths.runtime}
spool-path={paths.runtime}

[{stanza}]
pg1-path={paths.cluster}
pg1-socket-path={paths.runtime}
pg1-port={port}
pg1-user={SUPERUSER}
"""

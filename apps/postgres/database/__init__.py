"""The platform's database: starting PostgreSQL, its backups, and moving it to another server."""

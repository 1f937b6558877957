"""What `api` and `psmgr` share: the database's tables, releases, secrets, the bus, component descriptions.

The folder is copied into the source of both components, so it imports nothing of the operator's side.
"""

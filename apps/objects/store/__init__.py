"""The platform's object store: SeaweedFS behind its S3 gateway, and copying a bucket to another store."""

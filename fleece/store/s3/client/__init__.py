"""A client for S3: signed calls on one bucket, tried again, cancelled, and counted."""

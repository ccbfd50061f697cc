"""Objects in any S3-compatible store: put, get, head, list, delete, presign; and manifests."""

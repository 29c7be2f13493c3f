"""Where things are stored: whole objects by key, in a local directory or below an s3:// prefix."""

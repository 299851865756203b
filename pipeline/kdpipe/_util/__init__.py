"""What every package may use: files, digests, bounded parsing, redaction, the machine."""

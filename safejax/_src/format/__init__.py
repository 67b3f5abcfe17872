"""The format: bytes of a safetensors file to tables, and back. No files are opened here."""

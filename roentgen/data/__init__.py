"""Data: the manifest, adapters that write one, checks that read one, and torch datasets over one."""

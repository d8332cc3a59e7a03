"""The coordinator's default settings, as YAML."""

"""A site's default settings, as YAML."""

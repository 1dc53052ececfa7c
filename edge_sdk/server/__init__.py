"""A bundle behind OpenAI's HTTP API; needs the extra ``server``."""

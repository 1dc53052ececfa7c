"""Product with a block-quantised matrix."""
